"""Implements `letta-workers web`, and the same server beside `letta-workers run`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    nullcontext,
)
from importlib.util import find_spec

import click

from cache.logs import get_logger
from cache.opening import open_usage
from cache.usage import UsageReader
from settings import Settings, SettingsError, load_settings
from worker import open_queue
from worker.app.options import reveal
from worker.process.companion import Companion
from worker.web.address import Address, read_address

log = get_logger(__name__)

_DEFAULT = "127.0.0.1:8484"
_NEEDED = ("starlette", "uvicorn", "prometheus_client", "jinja2")


@click.command()
@click.option("--listen", "listen_on", metavar="HOST:PORT", help="Default: LETTA_WEB_LISTEN.")
@click.option("--beside-workers", is_flag=True, hidden=True)
def web(listen_on: str | None, beside_workers: bool) -> None:
    """Serve the operators' page, the JSON API, probes and /metrics, by default on 127.0.0.1:8484.

    With LETTA_WEB_LISTEN, `run` serves the same beside its workers. An address that other machines
    reach needs LETTA_WEB_TOKEN, which everything but the probes then asks for. TERM or Ctrl-C ends it.

    \b
    Examples:
      letta-workers web
      LETTA_WEB_TOKEN=... letta-workers web --listen 0.0.0.0:8484
      curl -H "Authorization: Bearer $LETTA_WEB_TOKEN" http://localhost:8484/metrics
      curl http://localhost:8484/api/jobs?state=running
    """
    settings = load_settings(use_redis_queue=True)
    address = checked_address(settings, listen_on)
    _require_packages()
    asyncio.run(_serve(settings, address, beside_workers=beside_workers))


def beside_run(settings: Settings) -> AbstractContextManager[object]:
    """
    The web server as a process beside the workers, where LETTA_WEB_LISTEN names an address.

    Raises:
        SettingsError: the address cannot be used.
    """
    if not settings.web_listen:
        return nullcontext()
    checked_address(settings, None)
    _require_packages()
    return Companion([sys.executable, "-P", "-m", "letta_redis.worker", "web", "--beside-workers"])


def checked_address(settings: Settings, given: str | None) -> Address:
    """
    Raises:
        SettingsError: it is no address, or other machines reach it and there is no token; or
            both tokens are the same.
    """
    try:
        address = read_address(given or settings.web_listen or _DEFAULT)
    except ValueError as exc:
        raise SettingsError(f"LETTA_WEB_LISTEN: {exc}") from None
    if settings.web_token is not None and settings.web_token == settings.web_read_token:
        raise SettingsError("LETTA_WEB_READ_TOKEN: it must differ from LETTA_WEB_TOKEN")
    if not address.is_loopback and settings.web_token is None:
        raise SettingsError(
            f"LETTA_WEB_LISTEN: other machines may reach {address}; set LETTA_WEB_TOKEN, or listen "
            "on 127.0.0.1"
        )
    return address


def _require_packages() -> None:
    for package in _NEEDED:
        if find_spec(package) is None:
            raise ModuleNotFoundError(f"No module named {package!r}", name=package)


async def _serve(settings: Settings, address: Address, *, beside_workers: bool) -> None:
    from worker.web.access import Access
    from worker.web.app import build_app
    from worker.web.serving import listen, serve
    from worker.web.site import Site

    try:
        listener = listen(address)
    except OSError as exc:
        raise SettingsError(f"LETTA_WEB_LISTEN: cannot listen on {address}: {exc}") from None
    with listener:
        host, port = listener.getsockname()[:2]
        async with (
            open_queue(settings) as queue,
            _cache_usage(settings) as usage,
            _end(beside_workers) as end,
        ):
            access = Access(
                reveal(settings.web_token),
                reveal(settings.web_read_token),
                settings.web_user_header,
            )
            host_name = socket.gethostname() if beside_workers else None
            site = Site(queue, access, settings.web_show_arguments, host_name, usage)
            app = build_app(site)
            log.info("web.started", address=str(Address(host, port)), pid=os.getpid())
            await serve(app, listener, end)
    log.info("web.stopped", address=str(Address(host, port)))


def _cache_usage(settings: Settings) -> AbstractAsyncContextManager[UsageReader | None]:
    return open_usage(settings) if settings.use_agent_cache else nullcontext()


@asynccontextmanager
async def _end(beside_workers: bool) -> AsyncIterator[asyncio.Event]:
    """Set by TERM or Ctrl-C; beside workers only by the end of the process that started this one."""
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        # systemd sends TERM to all processes, while the workers still drain.
        loop.add_signal_handler(number, (lambda: None) if beside_workers else end.set)
    if not beside_workers:
        yield end
        return
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def wait_for_owner() -> None:
        await reader.read()
        end.set()

    waiting = asyncio.create_task(wait_for_owner())
    try:
        yield end
    finally:
        waiting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiting
