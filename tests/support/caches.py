"""Opens caches for tests: with their own prefix and long timeouts for a busy machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from cache import Cache, CacheOptions
from cache.connection.pool import PoolOptions, open_pool

PATIENT_S = 5.0


@asynccontextmanager
async def cache_on(url: str, prefix: str, **options: Any) -> AsyncIterator[Cache]:
    """
    A cache with a separate client, as another process has one.

    It waits long for the server, unless the test passes another `timeout_s`.
    """
    patient = CacheOptions(prefix=prefix, timeout_s=PATIENT_S)
    chosen = replace(patient, **options)
    async with (
        open_pool(url, PoolOptions(connect_timeout_s=PATIENT_S), name="test-cache") as client,
        Cache(client, chosen) as cache,
    ):
        yield cache


class Loader:
    """A loader that counts its calls, returns `value`, and can be paused halfway."""

    def __init__(self, value: Any = None) -> None:
        self.value = value
        self.calls = 0
        self.started = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    def hold(self) -> None:
        self.go.clear()

    async def __call__(self) -> Any:
        self.calls += 1
        value = self.value
        self.started.set()
        await self.go.wait()
        if isinstance(value, BaseException):
            raise value
        return value
