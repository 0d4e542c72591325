"""
Reads and begins the era, which every served value must belong to.

An era ends when the server restarts, and when a member process has not renewed its
lease (cache/coherence/membership.py): that process may hold an undelivered
invalidation, so no value stored before is served. The next process that finds no
era begins one.
"""

from __future__ import annotations

import os

from cache.coherence.guarded import GuardedConnection
from cache.connection import scripts
from cache.connection.protocol import Connection
from cache.keys import CACHE_MAX_TTL_S, CacheKeys
from cache.logs import get_logger

log = get_logger(__name__)

ERA_BYTES = 16
_MAX_TTL_MS = int(CACHE_MAX_TTL_S * 1000)
_SCRIPT = scripts.load(__package__, "era")


class Eras:
    """Reads and begins eras, and says what values of one carry: their mark."""

    def __init__(self, connection: GuardedConnection, keys: CacheKeys) -> None:
        self._connection = connection
        self.key = keys.era
        self._keys = [keys.members, keys.era]
        self.known = b""  # the newest that was seen; may have ended
        self._memo: tuple[bytes, bytes] = (b"", b"")
        self._mark = b""

    def mark(self, era: bytes | None, key: str) -> bytes | None:
        """
        What values of an era carry on the node of `key`; None for an era that counts no more.

        The node's run is in it too: a restart from a snapshot or a failover to a lagging
        replica can bring back what an invalidation had removed.
        """
        connection = self._connection.unguarded
        if era is None or era[:8] != connection.incarnation_of(self.key):
            return None
        memo = (era, connection.incarnation_of(key))
        if memo != self._memo:
            self.known = era
            self._mark = bytes(a ^ b for a, b in zip(era[8:], memo[1], strict=True))
            self._memo = memo
        return self._mark

    def learn(self, era: bytes) -> None:
        """Remember the newest era. May be called from any thread."""
        self.known = era

    async def read(self) -> bytes | None:
        """Raises Away."""
        era: bytes | None = await self._connection.execute("GET", self.key)
        return era

    async def open(self) -> bytes:
        """The era of now, begun if there is none. Raises Away."""
        args = script_args("open", self._connection.unguarded, self.key)
        reply = await self._connection.run(_SCRIPT, self._keys, args)
        return heard(reply)

    async def mark_known(self, key: str) -> bytes:
        """The mark of the newest era that was seen; the caller finds out whether it has ended."""
        era = self.known or await self.read()
        return self.mark(era, key) or b""

    async def mark_now(self, key: str, *, era: bytes | None = None) -> bytes:
        """The mark to store under; `era` as it was read a moment ago, if it was. Raises Away."""
        found = self.mark(era or await self.read(), key)
        if found is None:
            found = self.mark(await self.open(), key)
        return found or b""  # restarted between the two: what is stored under it counts nowhere


def script_args(
    mode: str,
    connection: Connection,
    era_key: str,
    *,
    member: str = "",
    lease_ms: int = 0,
    latest_ms: int = 0,
) -> tuple[object, ...]:
    """The arguments of era.lua."""
    fresh = connection.incarnation_of(era_key) + os.urandom(8)
    return mode, member, lease_ms, latest_ms, fresh, _MAX_TTL_MS


def heard(reply: list[object]) -> bytes:
    """The era in a reply of era.lua. Logs if members had stopped renewing."""
    era, lapsed = reply[2], reply[3]
    if lapsed:
        log.warning("cache.members_lapsed", members=lapsed)
    return bytes(era)  # type: ignore[call-overload,no-any-return]
