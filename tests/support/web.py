"""Serves the web application on a free port, with a client of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import httpx

from cache.usage import UsageReader, read_usage
from tests.support.queues import stores_of
from worker import JobQueue
from worker.web.access import Access
from worker.web.address import Address
from worker.web.app import build_app
from worker.web.serving import listen, serve
from worker.web.site import Site

TOKEN, READ_TOKEN = "a-token-of-the-test", "a-read-token-of-the-test"
OPEN = Access()
CLOSED = Access(TOKEN, READ_TOKEN)


def bearer(token: str = TOKEN) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@asynccontextmanager
async def serving(site: Site) -> AsyncIterator[str]:
    """The application on a free port; gives its URL."""
    end = asyncio.Event()
    with listen(Address("127.0.0.1", 0)) as listener:
        task = asyncio.create_task(serve(build_app(site), listener, end))
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            end.set()
            await task


def usage_on(queue: JobQueue) -> UsageReader:
    """What reads the usage of a cache on the queue's server."""
    return partial(read_usage, stores_of(queue).client)


@asynccontextmanager
async def asking(
    queue: JobQueue,
    *,
    access: Access = OPEN,
    show_arguments: bool = False,
    host: str | None = None,
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application, which runs on a free port."""
    async with (
        serving(Site(queue, access, show_arguments, host, usage_on(queue))) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as client,
    ):
        yield client
