"""Serves the web application on one address until it is told to end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from worker.web.address import Address
from worker.web.protocol import MOST_HEAD, BoundedProtocol

_GRACE_S = 5


class _WebServer(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the command, which decides what ends it."""
        yield


def listen(address: Address) -> socket.socket:
    """
    Bind the address.

    Raises:
        OSError: it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listener = socket.create_server((address.host, address.port), family=family, backlog=128)
    # asyncio leaves it off for sockets that were made outside it, and then a reply waits for the
    # client's delayed acknowledgment: 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


async def serve(app: ASGIApp, listener: socket.socket, end: asyncio.Event) -> None:
    """Serve until `end` is set; open requests have a few seconds to finish."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        http=BoundedProtocol,
        ws="none",
        h11_max_incomplete_event_size=MOST_HEAD,
        timeout_graceful_shutdown=_GRACE_S,
    )
    server = _WebServer(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    ending = asyncio.create_task(end.wait())
    await asyncio.wait({serving, ending}, return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    ending.cancel()
    await serving
