"""
Builds the web application: probes, metrics, the JSON API with its description, and the page.

Probes need no token. Everything else needs one where there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from worker.errors import WorkerError
from worker.web.access import Refused
from worker.web.api.openapi import describe
from worker.web.api.reads import cache_if_there
from worker.web.api.routes import answering, api_routes
from worker.web.bearer import headers_of, visitor_of
from worker.web.metrics import FleetReading, render
from worker.web.page.routes import page_routes
from worker.web.readiness import readiness_of
from worker.web.site import Site

# A probe that waits longer counts as failed anyway.
_LIMIT_S = 3.0

Endpoint = Callable[[Request], Awaitable[Response]]


def build_app(site: Site) -> Starlette:
    """Build the application on an open client."""
    routes = [
        Route("/healthz", _healthz),
        Route("/readyz", _readyz(site)),
        Route("/metrics", _metrics(site)),
        Route("/api/openapi.json", _description(site)),
        *api_routes(site),
        *page_routes(site),
    ]
    return Starlette(routes=routes)


async def _healthz(_request: Request) -> Response:
    """Answer while the event loop runs. It never asks the server."""
    return PlainTextResponse("ok\n")


def _readyz(site: Site) -> Endpoint:
    async def readyz(request: Request) -> Response:
        jobs = site.queue.jobs
        try:
            async with asyncio.timeout(_LIMIT_S):
                overview = await jobs.overview()
                workers = await jobs.workers() if site.host is not None else []
        except (WorkerError, TimeoutError) as exc:
            return _answer([f"the queue's server: {_text_for(site, request, exc)}"])
        return _answer(readiness_of(overview, workers, site.host).problems)

    return readyz


def _metrics(site: Site) -> Endpoint:
    async def metrics(request: Request) -> Response:
        jobs = site.queue.jobs
        try:
            visitor_of(site, request)
            async with asyncio.timeout(_LIMIT_S):
                reading = FleetReading(
                    await jobs.overview(),
                    await jobs.fleet(),
                    await jobs.history.totals(),
                    await site.queue.llm.history.totals(),
                    await site.queue.llm.batches.progress(),
                    await jobs.server(),
                    await cache_if_there(site),
                )
        except Refused as exc:
            return PlainTextResponse(f"{exc}\n", status_code=exc.status, headers=headers_of(exc))
        except (WorkerError, TimeoutError) as exc:
            return PlainTextResponse(f"the queue's server: {_text_of(exc)}\n", status_code=503)
        body, content_type = render(reading, request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    return metrics


def _description(site: Site) -> Endpoint:
    @cache
    def described() -> dict[str, Any]:
        return describe(asks_for_token=site.access.asks_for_token)

    async def work(request: Request) -> dict[str, Any]:
        visitor_of(site, request)
        return described()

    return answering(work)


def _answer(problems: list[str]) -> Response:
    status = 503 if problems else 200
    return JSONResponse({"ready": not problems, "problems": problems}, status_code=status)


def _text_for(site: Site, request: Request, exc: Exception) -> str:
    """A probe needs no token; whoever has none learns neither an address nor a server's words."""
    try:
        visitor_of(site, request)
    except Refused:
        return "cannot be used; ask with a token for the reason"
    return _text_of(exc)


def _text_of(exc: Exception) -> str:
    return f"no answer within {_LIMIT_S:g} s" if isinstance(exc, TimeoutError) else str(exc)
