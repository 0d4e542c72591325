"""
Runs a webhook receiver for the demo and the tests: `python -m worker.demo.receiver`.

POST /ok accepts every webhook. POST /flaky/<n> answers 503 to the first n
attempts of each webhook-id. POST /status/<code> always answers with that code.
GET /seen returns the attempts of each webhook-id, newest last:
[{"time", "status", "headers", "body"}].
"""

from __future__ import annotations

import base64
import time
from collections import defaultdict
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from worker.demo.serving import serve

seen: dict[str, list[dict[str, Any]]] = defaultdict(list)


async def take(request: Request) -> Response:
    id_ = request.headers.get("webhook-id", "")
    if "failures" in request.path_params:
        status = 503 if len(seen[id_]) < request.path_params["failures"] else 200
    else:
        status = request.path_params.get("code", 200)
    body = await request.body()
    seen[id_].append(
        {
            "time": time.time(),
            "status": status,
            "headers": dict(request.headers),
            "body": base64.b64encode(body).decode(),
        }
    )
    return Response(status_code=status)


async def report(request: Request) -> Response:
    if request.query_params.get("brief"):
        return JSONResponse(
            {id_: [[row["time"], row["status"]] for row in rows] for id_, rows in seen.items()}
        )
    return JSONResponse(seen)


app = Starlette(
    routes=[
        Route("/ok", take, methods=["POST"]),
        Route("/flaky/{failures:int}", take, methods=["POST"]),
        Route("/status/{code:int}", take, methods=["POST"]),
        Route("/seen", report),
    ]
)

if __name__ == "__main__":
    serve(app)
