"""
Runs an OpenAI-compatible server for the demo and the tests: `python -m worker.demo.openai_server`.

It serves /v1/chat/completions, /v1/files and /v1/batches as in the public API. A
batch is in progress at the first request for its state and completed at the
second. A request whose last message contains "please fail" gets its own error.
`--no-batches` leaves out /files and /batches. GET /calls returns the number of
calls of each path.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from worker.demo.serving import serve

calls: Counter[str] = Counter()
files: dict[str, bytes] = {}
batches: dict[str, dict[str, Any]] = {}
numbers = itertools.count(1)


def complete(body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    text = str(body["messages"][-1].get("content", ""))
    if "please fail" in text:
        return 400, {"error": {"code": "invalid_prompt", "message": "asked to fail", "type": "x"}}
    answer = {"role": "assistant", "content": f"echo: {text}"}
    return 200, {
        "id": f"chatcmpl-{next(numbers)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [{"index": 0, "message": answer, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    }


async def chat(request: Request) -> Response:
    calls["chat"] += 1
    status, body = complete(await request.json())
    return JSONResponse(body, status)


async def upload(request: Request) -> Response:
    calls["files"] += 1
    async with request.form(max_part_size=300 * 1024 * 1024) as form:
        part = form["file"]
        data = part.encode() if isinstance(part, str) else await part.read()
    id_ = f"file-{next(numbers)}"
    files[id_] = data
    return JSONResponse({"id": id_, "object": "file", "bytes": len(data), "purpose": "batch"})


async def content(request: Request) -> Response:
    data = files.get(request.path_params["id"])
    return Response(status_code=404) if data is None else Response(data)


async def create(request: Request) -> Response:
    calls["batches"] += 1
    body = await request.json()
    id_ = f"batch-{next(numbers)}"
    batches[id_] = {
        "id": id_,
        "object": "batch",
        "endpoint": body["endpoint"],
        "input_file_id": body["input_file_id"],
        "metadata": body.get("metadata") or {},
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "errors": None,
    }
    return JSONResponse(batches[id_])


async def retrieve(request: Request) -> Response:
    batch = batches.get(request.path_params["id"])
    if batch is None:
        return Response(status_code=404)
    if batch["status"] == "validating":
        batch["status"] = "in_progress"
    elif batch["status"] == "in_progress":
        finish(batch)
    return JSONResponse(batch)


async def list_batches(_request: Request) -> Response:
    return JSONResponse({"object": "list", "data": list(batches.values())[::-1], "has_more": False})


def finish(batch: dict[str, Any]) -> None:
    good: list[str] = []
    bad: list[str] = []
    for line in files[batch["input_file_id"]].splitlines():
        row = json.loads(line)
        status, body = complete(row["body"])
        response = {"status_code": status, "request_id": f"r{next(numbers)}", "body": body}
        item = {"id": f"item-{next(numbers)}", "custom_id": row["custom_id"], "response": response}
        (good if status == 200 else bad).append(json.dumps({**item, "error": None}))
    for field, lines in (("output_file_id", good), ("error_file_id", bad)):
        if lines:
            batch[field] = f"file-{next(numbers)}"
            # The API promises no order; the reverse one exposes a client that relies on it.
            files[batch[field]] = "\n".join(reversed(lines)).encode()
    batch["status"] = "completed"


async def report(_request: Request) -> Response:
    return JSONResponse(calls)


def build_app(*, with_batches: bool) -> Starlette:
    routes = [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/calls", report),
    ]
    if with_batches:
        routes += [
            Route("/v1/files", upload, methods=["POST"]),
            Route("/v1/files/{id}/content", content),
            Route("/v1/batches", create, methods=["POST"]),
            Route("/v1/batches", list_batches),
            Route("/v1/batches/{id}", retrieve),
        ]
    return Starlette(routes=routes)


if __name__ == "__main__":
    serve(build_app(with_batches="--no-batches" not in sys.argv))
