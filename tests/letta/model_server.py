"""A local model server with OpenAI's API: chat completions, also streamed, and embeddings."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

MODELS = ("gpt-4o-mini", "text-embedding-3-small")
ANSWER = "an answer of the model"
_USAGE = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


async def models(_request: Request) -> Response:
    rows = [{"id": name, "object": "model", "created": 1, "owned_by": "tests"} for name in MODELS]
    return JSONResponse({"object": "list", "data": rows})


async def embeddings(request: Request) -> Response:
    given = (await request.json())["input"]
    texts = [given] if isinstance(given, str) else given
    rows = [
        {"object": "embedding", "index": number, "embedding": [0.1] * 1536}
        for number in range(len(texts))
    ]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return JSONResponse({"object": "list", "data": rows, "model": MODELS[1], "usage": usage})


async def chat(request: Request) -> Response:
    body = await request.json()
    if body.get("stream"):
        return StreamingResponse(chunks(body), media_type="text/event-stream")
    message = {"role": "assistant", "content": ANSWER}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return JSONResponse({**head(body, "chat.completion"), "choices": [choice], "usage": _USAGE})


def head(body: dict[str, Any], kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": int(time.time()), "model": body["model"]}


def chunks(body: dict[str, Any]) -> Iterator[str]:
    kind = "chat.completion.chunk"
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word + " "} for word in ANSWER.split()]
    for delta in deltas:
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        yield f"data: {json.dumps({**head(body, kind), 'choices': [choice]})}\n\n"
    last = {"index": 0, "delta": {}, "finish_reason": "stop"}
    yield f"data: {json.dumps({**head(body, kind), 'choices': [last], 'usage': _USAGE})}\n\n"
    yield "data: [DONE]\n\n"


app = Starlette(
    routes=[
        Route("/v1/models", models),
        Route("/v1/embeddings", embeddings, methods=["POST"]),
        Route("/v1/chat/completions", chat, methods=["POST"]),
    ]
)

if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
