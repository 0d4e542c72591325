"""
Stands in for the Letta server in containers: webhooks, LLM requests and cached agents over HTTP.

Its settings come from the compose file alone, as the plug-in's do. Its database is
one file, so that it survives the death of the process.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from letta_redis import RequestFailed, ResultTimeout, open_cache, open_queue

DATABASE = Path("/tmp/agents.json")


@contextlib.asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with open_queue() as queue, open_cache() as cache:
        app.state.queue, app.state.cache, app.state.held = queue, cache, {}
        yield


async def health(_: Request) -> JSONResponse:
    return JSONResponse({"status": "ok"})


async def send(request: Request) -> JSONResponse:
    body = await request.json()
    id_ = await request.app.state.queue.send_webhook(
        body["url"], body["payload"], event_type="drill.event", webhook_id=body["id"]
    )
    return JSONResponse({"id": id_})


async def delivery(request: Request) -> JSONResponse:
    found = await request.app.state.queue.delivery(request.path_params["id"])
    return JSONResponse({"state": found.state, "attempts": len(found.attempts)})


async def ask(request: Request) -> JSONResponse:
    text = (await request.json())["text"]
    body = {"model": "drill-model", "messages": [{"role": "user", "content": text}]}
    id_ = await request.app.state.queue.submit_llm_request(
        body, provider="openai", endpoint="/v1/chat/completions"
    )
    return JSONResponse({"id": id_})


async def answer(request: Request) -> JSONResponse:
    try:
        found = await request.app.state.queue.llm_result(request.path_params["id"], timeout_s=1)
    except ResultTimeout:
        return JSONResponse({"state": "waiting"})
    except RequestFailed as exc:
        return JSONResponse({"state": "failed", "error": exc.kind})
    return JSONResponse({"state": "answered", "text": found["choices"][0]["message"]["content"]})


async def hold(request: Request) -> JSONResponse:
    started = await request.app.state.queue.enqueue("hold", (await request.json())["seconds"])
    request.app.state.held[started.id] = started
    return JSONResponse({"id": started.id})


async def job(request: Request) -> JSONResponse:
    found = await request.app.state.held[request.path_params["id"]].status()
    return JSONResponse({"status": found.value})


def database() -> dict[str, int]:
    found: dict[str, int] = json.loads(DATABASE.read_text()) if DATABASE.exists() else {}
    return found


def store(id_: str, version: int) -> None:
    """Write the whole file and rename it: a killed process leaves the old one or the new one."""
    new = DATABASE.with_suffix(".new")
    new.write_text(json.dumps({**database(), id_: version}))
    new.rename(DATABASE)


async def read(request: Request) -> JSONResponse:
    """Read an agent's version through the cache."""
    id_ = request.path_params["id"]
    loaded = False

    async def load() -> dict[str, Any]:
        nonlocal loaded
        loaded = True
        return {"version": database().get(id_, 0)}

    state = await request.app.state.cache.agents.get_or_load(id_, load)
    return JSONResponse({"version": state["version"], "hit": not loaded})


async def write(request: Request) -> JSONResponse:
    """Write an agent's version. After the reply, no process serves an older one."""
    id_, version = request.path_params["id"], (await request.json())["version"]
    async with request.app.state.cache.writing(agents=[id_]):
        store(id_, version)
    return JSONResponse({"version": version})


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/v1/health/", health),
        Route("/webhooks", send, methods=["POST"]),
        Route("/webhooks/{id}", delivery),
        Route("/requests", ask, methods=["POST"]),
        Route("/requests/{id}", answer),
        Route("/jobs", hold, methods=["POST"]),
        Route("/jobs/{id}", job),
        Route("/agents/{id}", read),
        Route("/agents/{id}", write, methods=["PUT"]),
    ],
)
