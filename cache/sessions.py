"""
Sessions of agents: the caller's own data with a TTL that every read renews.

They are copies of nothing, so no invalidation touches them; a server that is
away is a session that is not found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from cache.coherence.entries import value_key
from cache.connection.protocol import Away
from cache.encoding.envelope import Stamp, Unreadable
from cache.keys import CACHE_MAX_TTL_S
from cache.names import check_agent_id, check_name

if TYPE_CHECKING:
    from cache.components import Parts

_FIELD = "session"
_NONE = bytes(8)


class Sessions:
    """`cache.agents.sessions`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def get(
        self, agent_id: str, session_id: str, *, model: type[BaseModel] | None = None
    ) -> Any:
        """The session's data, and its TTL begins anew; None when there is none."""
        parts, key = self._parts, self._key(agent_id, session_id)
        if not parts.options.enabled:
            return None
        try:
            data = await parts.entries.link.execute("GET", key)
            stored = parts.entries.envelopes.read(data or b"")
            if stored.head is None:
                return None
            # The TTL that it was stored with travels as the header's load time, in seconds.
            await parts.entries.link.execute("EXPIRE", key, stored.head.load_us)
            return parts.entries.envelopes.open(stored, value_key(key, _FIELD), model)
        except Away:
            parts.counters.bypassed += 1
        except Unreadable:
            parts.counters.unreadable += 1
        return None

    async def set(
        self, agent_id: str, session_id: str, data: Any, *, ttl_s: float | None = None
    ) -> bool:
        """
        Store a session; False when the server is away or the data is too large.

        Raises:
            NotEncodable: something inside has no safe encoding.
        """
        parts, key = self._parts, self._key(agent_id, session_id)
        life_s = max(1, round(min(ttl_s or parts.options.session_ttl_s, CACHE_MAX_TTL_S)))
        stamp = Stamp(_NONE, _NONE, 0, 0, load_us=life_s)
        sealed = parts.entries.envelopes.seal(data, stamp, value_key(key, _FIELD))
        if not parts.options.enabled:
            return False
        if len(sealed) > parts.options.max_value_bytes:
            parts.counters.too_large += 1
            return False
        try:
            await parts.entries.link.execute("SET", key, sealed, "EX", life_s)
        except Away:
            parts.counters.bypassed += 1
            return False
        return True

    async def delete(self, agent_id: str, session_id: str) -> bool:
        """True when it was there; False when not, or when the server is away."""
        key = self._key(agent_id, session_id)
        try:
            return bool(await self._parts.entries.link.execute("UNLINK", key))
        except Away:
            self._parts.counters.bypassed += 1
            return False

    def _key(self, agent_id: str, session_id: str) -> str:
        check_agent_id(agent_id)
        check_name("session_id", session_id)
        return self._parts.keys.session(agent_id, session_id)
