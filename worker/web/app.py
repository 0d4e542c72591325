"""
Builds the web application: /healthz, /readyz and /metrics.

Probes need no token. /metrics needs it where there is one.
"""

from __future__ import annotations

import asyncio
import hmac
import socket
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cache.logs import get_logger
from worker.client import JobQueue
from worker.errors import WorkerError
from worker.web.metrics import Reading, render
from worker.web.readiness import judge

log = get_logger(__name__)

Endpoint = Callable[[Request], Awaitable[Response]]
# A probe that waits longer counts as failed anyway.
_LIMIT_S = 3.0


def build_app(queue: JobQueue, *, token: str | None, beside_workers: bool) -> Starlette:
    """
    Build the application on an open client.

    token: what /metrics asks for as `Authorization: Bearer`. beside_workers: whether /readyz
    also asks for workers of this machine that are alive and do not drain.
    """
    host = socket.gethostname() if beside_workers else None

    async def healthz(_request: Request) -> Response:
        """Answer while the event loop runs. It never asks the server."""
        return PlainTextResponse("ok\n")

    async def readyz(_request: Request) -> Response:
        try:
            async with asyncio.timeout(_LIMIT_S):
                overview = await queue.jobs.overview()
                workers = await queue.jobs.workers() if host is not None else []
        except (WorkerError, TimeoutError) as exc:
            return _answer([f"the queue's server: {_text_of(exc)}"])
        return _answer(judge(overview, workers, host).problems)

    async def metrics(request: Request) -> Response:
        try:
            async with asyncio.timeout(_LIMIT_S):
                reading = Reading(
                    await queue.jobs.overview(),
                    await queue.jobs.workers(),
                    await queue.jobs.history.totals(),
                )
        except (WorkerError, TimeoutError) as exc:
            return PlainTextResponse(f"the queue's server: {_text_of(exc)}\n", status_code=503)
        body, content_type = render(reading, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    routes = [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", guarded(metrics, token)),
    ]
    return Starlette(routes=routes)


def guarded(endpoint: Endpoint, token: str | None) -> Endpoint:
    """Let only requests with the token pass, if there is one."""
    if token is None:
        return endpoint
    expected = f"Bearer {token}".encode()

    async def checked(request: Request) -> Response:
        given = request.headers.get("authorization", "").encode("latin-1")
        if hmac.compare_digest(given, expected):
            return await endpoint(request)
        headers = {"www-authenticate": "Bearer"}
        return PlainTextResponse(
            "give LETTA_WEB_TOKEN as a bearer token\n", status_code=401, headers=headers
        )

    return checked


def _answer(problems: list[str]) -> Response:
    status = 503 if problems else 200
    return JSONResponse({"ready": not problems, "problems": problems}, status_code=status)


def _text_of(exc: Exception) -> str:
    return f"no answer within {_LIMIT_S:g} s" if isinstance(exc, TimeoutError) else str(exc)
