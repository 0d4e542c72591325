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
    from cache.components import Components

_FIELD = "session"
_NONE = bytes(8)


class Sessions:
    """`cache.agents.sessions`."""

    def __init__(self, components: Components) -> None:
        self._components = components

    async def get(
        self, agent_id: str, session_id: str, *, model: type[BaseModel] | None = None
    ) -> Any:
        """The session's data, and its TTL begins anew; None when there is none."""
        components, key = self._components, self._key(agent_id, session_id)
        if not components.options.enabled:
            return None
        try:
            data = await components.entries.connection.execute("GET", key)
            stored = components.entries.envelopes.read(data or b"")
            if stored.head is None:
                return None
            # The TTL that it was stored with travels as the header's load time, in seconds.
            await components.entries.connection.execute("EXPIRE", key, stored.head.load_us)
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
        Store a session; False when the server is away or the data is too large.

        Raises:
            NotEncodable: something inside has no safe encoding.
        """
        components, key = self._components, self._key(agent_id, session_id)
        life_s = max(1, round(min(ttl_s or components.options.session_ttl_s, CACHE_MAX_TTL_S)))
        stamp = Stamp(_NONE, _NONE, 0, 0, load_us=life_s)
        sealed = components.entries.envelopes.seal(data, stamp, value_key(key, _FIELD))
        if not components.options.enabled:
            return False
        if len(sealed) > components.options.max_value_bytes:
            components.counters.too_large += 1
            return False
        try:
            await components.entries.connection.execute("SET", key, sealed, "EX", life_s)
        except Away:
            components.counters.bypassed += 1
            return False
        return True

    async def delete(self, agent_id: str, session_id: str) -> bool:
        """True when it was there; False when not, or when the server is away."""
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
