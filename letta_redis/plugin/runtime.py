"""Holds what the plug-in has open in this process: cache, queue and their switches."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from cache.logs import get_logger
from letta_redis.plugin.begun import Runs
from letta_redis.plugin.switches import PluginSwitches

if TYPE_CHECKING:
    from cache.service import Cache
    from letta_redis.plugin.outcomes import Outcomes
    from settings import Settings

log = get_logger("letta_redis")


class Runtime:
    """
    The open cache, queue and switches. They belong to the event loop that started them.

    Args:
        opens_by_itself: True in a process that starts no server; there, `opened` opens the cache.
        install_in_child: installs the plug-in in a spawned process. It is pickled by name.

    Attributes:
        collects_changes: whether every write of this process is announced. While False, nothing
            is read from the cache, because this process would not invalidate it.
        before_closing: awaited while everything is still open.
        callbacks: number of callbacks `stored`, and of those posted `inline`, by reason.
        runs: the runs that this process has begun.
        seals_webhooks: whether a webhook may carry its own token.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        opens_by_itself: bool = False,
        install_in_child: Callable[[], None] | None = None,
    ) -> None:
        self.install_in_child = install_in_child
        self.switches = PluginSwitches(settings)
        self.collects_changes = False
        self.runs = Runs()
        self.before_closing: list[Callable[[], Awaitable[None]]] = []
        self.callbacks: Counter[str] = Counter()
        self.seals_webhooks = settings.webhook_encryption_key is not None
        # A half that is off still announces its writes to the processes where it is on.
        # A time limit on loaders would raise errors that Letta never raises.
        self._settings = settings.model_copy(
            update={
                "use_agent_cache": True,
                "use_redis_queue": True,
                "cache_loader_timeout_s": None,
            }
        )
        self._opens_by_itself = opens_by_itself
        self._cache: Cache | None = None
        self._outcomes: Outcomes | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stack = AsyncExitStack()
        self._starting: asyncio.Task[None] | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that opened the cache, for calls from other threads."""
        return self._loop

    def cache(self) -> Cache | None:
        """The open cache. None in another event loop, and while none is open."""
        cache = self._cache
        return cache if cache is not None and self._loop is asyncio.get_running_loop() else None

    def cache_to_read(self) -> Cache | None:
        """The cache, if agents may be read through it."""
        return self.cache() if self.collects_changes and self.switches.agent_cache else None

    def outcomes(self) -> Outcomes | None:
        """The callbacks of the fleet. None in another event loop, while off, and while not open."""
        if self._loop is not asyncio.get_running_loop() or not self.switches.redis_queue:
            return None
        return self._outcomes

    async def opened(self) -> Cache | None:
        """As `cache`; in a spawned process, opened at its first use."""
        if self._opens_by_itself and self._loop is None:
            await self.start()
        return self.cache()

    async def start(self) -> None:
        """
        Open everything in the running event loop. A second call waits for the first one.

        Never fails: while the server is away, the cache calls its loaders.
        """
        if self._starting is None:
            self._loop = asyncio.get_running_loop()
            self._starting = asyncio.ensure_future(self._start())
        if self._loop is asyncio.get_running_loop():
            await asyncio.shield(self._starting)

    async def _start(self) -> None:
        from cache.opening import open_cache
        from letta_redis.plugin.outcomes import open_outcomes

        enter = self._stack.enter_async_context
        try:
            self._cache = await enter(open_cache(self._settings))
            await enter(self.switches.followed(self._settings))
            self._outcomes = await enter(
                open_outcomes(
                    self._settings,
                    is_on=lambda: self.switches.redis_queue,
                    counts=self.callbacks,
                )
            )
        except Exception:
            log.exception("letta.open_failed")

    async def stop(self) -> None:
        """Close everything. Letta then reads and writes as without the plug-in."""
        self._cache, self._outcomes, self._loop, self._starting = None, None, None, None
        for finish in self.before_closing:
            await finish()
        await self._stack.aclose()
