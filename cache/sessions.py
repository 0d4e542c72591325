"""
Keeps sessions of agents: the caller's own data, with a TTL that every read renews.

A session is stored as its TTL (4 bytes, seconds) and an envelope. It is not a
copy of anything, so no invalidation removes it. While the server is away, a
session is not found.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

from cache.coherence.results import value_key
from cache.connection.protocol import Away
from cache.encoding.envelope import Unreadable
from cache.encoding.header import Stamp
from cache.keys import bounded_ttl_s
from cache.names import check_agent_id, check_name

if TYPE_CHECKING:
    from pydantic import BaseModel

    from cache.components import Components

_FIELD = "session"
_TTL_S = struct.Struct(">I")
# Sessions belong to no fill, run or version.
_STAMP = Stamp(bytes(8), bytes(8), 0, 0)


class Sessions:
    """`cache.agents.sessions`."""

    def __init__(self, components: Components) -> None:
        self._components = components

    async def get(
        self, agent_id: str, session_id: str, *, model: type[BaseModel] | None = None
    ) -> Any:
        """The session's data, or None. A read starts the TTL again."""
        components, key = self._components, self._key(agent_id, session_id)
        if not components.options.enabled:
            return None
        try:
            data = await components.entries.connection.execute("GET", key)
            stored = components.entries.envelopes.read(data or b"", _TTL_S.size)
            if stored.head is None:
                return None
            await components.entries.connection.execute("EXPIRE", key, *_TTL_S.unpack_from(data))
            return components.entries.envelopes.open(stored, value_key(key, _FIELD), model)
        except Away:
            components.counters.bypassed += 1
        except Unreadable:
            components.counters.unreadable += 1
        return None

    async def set(
        self, agent_id: str, session_id: str, data: Any, *, ttl_s: float | None = None
    ) -> bool:
        """
        Store a session. False when the server is away or has no room, or the data is too large.

        Raises:
            NotEncodable: a part of the data would not come back as given.
        """
        components, key = self._components, self._key(agent_id, session_id)
        life_s = max(1, round(bounded_ttl_s(ttl_s or components.options.session_ttl_s)))
        envelope = components.entries.envelopes.seal(data, _STAMP, value_key(key, _FIELD))
        sealed = _TTL_S.pack(life_s) + envelope
        if not components.options.enabled:
            return False
        if len(sealed) > components.options.max_value_bytes:
            components.counters.too_large += 1
            return False
        if not await components.room.left(key, len(sealed)):
            return False
        try:
            await components.entries.connection.execute("SET", key, sealed, "EX", life_s)
        except Away:
            components.counters.bypassed += 1
            return False
        return True

    async def delete(self, agent_id: str, session_id: str) -> bool:
        """True if the session existed; False if not, or while the server is away."""
        key = self._key(agent_id, session_id)
        try:
            return bool(await self._components.entries.connection.execute("UNLINK", key))
        except Away:
            self._components.counters.bypassed += 1
            return False

    def _key(self, agent_id: str, session_id: str) -> str:
        check_agent_id(agent_id)
        check_name("session_id", session_id)
        return self._components.keys.session(agent_id, session_id)
