"""
Follows the switches of both halves while the server runs.

LETTA_USE_AGENT_CACHE or LETTA_USE_REDIS_QUEUE switches a half on, in the environment,
.env or the secrets directory, unless `arq:switches` on the queue's server overrides it.
A background task reads all of them every two seconds; a request reads an attribute.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from cache.logs import get_logger
from worker.keys import QUEUE_TAG, QueueKeys

if TYPE_CHECKING:
    from settings import Settings

log = get_logger("letta_redis")

# Field on the server -> setting.
SWITCHES = {"agent_cache": "use_agent_cache", "redis_queue": "use_redis_queue"}
_READ_EVERY_S = 2.0


class PluginSwitches:
    """Whether each half is on: `agent_cache` and `redis_queue`."""

    def __init__(self, settings: Settings) -> None:
        self._environment = {name: getattr(settings, field) for name, field in SWITCHES.items()}
        self._server: dict[str, bool] = {}
        self._sources = _sources()
        self.agent_cache: bool = self._environment["agent_cache"]
        self.redis_queue: bool = self._environment["redis_queue"]

    @asynccontextmanager
    async def followed(self, settings: Settings) -> AsyncIterator[None]:
        """Follow the switches until the block ends. Reads them first, for at most two seconds."""
        from cache.connection.pool import open_pool
        from cache.opening import pool_options

        pool = open_pool(
            settings.redis_url, pool_options(settings), name="letta-switches", tag=QUEUE_TAG
        )
        async with pool as client:
            with suppress(TimeoutError):
                async with asyncio.timeout(_READ_EVERY_S):
                    await self.read(client)
            following = asyncio.ensure_future(self._follow(client))
            try:
                yield
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)

    async def _follow(self, client: Any) -> None:
        while True:
            try:
                await self.read(client)
            except Exception:
                log.exception("letta.switches_failed")
            await asyncio.sleep(_READ_EVERY_S)

    async def read(self, client: Any) -> None:
        """Read every source once. While the server is away, its last values stay in force."""
        sources = _sources()
        if sources != self._sources:
            self._sources = sources
            self._read_environment()
        try:
            values = await client.hmget(QueueKeys.of(client).switches, list(SWITCHES))
        except (RedisError, OSError):
            pass
        else:
            found = zip(SWITCHES, values, strict=True)
            self._server = {name: value == b"on" for name, value in found if value is not None}
        for name in SWITCHES:
            self._set(name, self._server.get(name, self._environment[name]))

    def _read_environment(self) -> None:
        from settings import SettingsError, read_settings

        try:
            settings = read_settings()
        except SettingsError as exc:
            log.warning("letta.switches_unreadable", error=str(exc))
            return
        for name, field in SWITCHES.items():
            self._environment[name] = getattr(settings, field)

    def _set(self, name: str, on: bool) -> None:
        if getattr(self, name) != on:
            setattr(self, name, on)
            log.info("letta.switched", half=name, on=on, by_server=name in self._server)


def _sources() -> tuple[object, ...]:
    """Values that change whenever a switch in the environment, .env or the secrets may have changed."""
    secrets = Path(os.environ.get("LETTA_SECRETS_DIR", "/run/secrets"))
    names = [f"letta_{field}" for field in SWITCHES.values()]
    variables = [value for key, value in os.environ.items() if key.lower() in names]
    files = [Path(".env"), *(secrets / name for name in names)]
    return (*variables, *map(_changed_ns, files))


def _changed_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


async def switch(settings: Settings, name: str, state: str) -> None:
    """
    Set a switch for every server: "on", "off", or "default", which leaves it to their settings.

    Raises:
        RedisError: the server cannot be reached.
    """
    from cache.connection.pool import open_pool
    from cache.opening import pool_options

    pool = open_pool(
        settings.redis_url, pool_options(settings), name="letta-switches", tag=QUEUE_TAG
    )
    async with pool as client:
        if state == "default":
            await client.hdel(QueueKeys.of(client).switches, name)
        else:
            await client.hset(QueueKeys.of(client).switches, name, state)
