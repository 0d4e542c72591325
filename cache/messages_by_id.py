"""
Caches single messages by id: `get_many`, `get_or_load_many`, `put_many`, `invalidate_ids`.

Each message is an entry of its own, with a version, a lease and intents, so the rules
of an agent's values hold for each message (docs/caching.md): a write names it before
its commit, and a load from before the write is not stored. Windows are other copies of
messages; `writing(conversations=...)` names those.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from cache.coherence.change import Change
from cache.coherence.flight import LoadOptions
from cache.coherence.results import Lease, Reading
from cache.components import Components, ValueSlot
from cache.connection.protocol import Away
from cache.connection.tasks import all_of
from cache.errors import InvalidName
from cache.names import check_name, checked_names
from cache.values import AT_ONCE, Values

if TYPE_CHECKING:
    from pydantic import BaseModel

T = TypeVar("T")

_FIELD = "body"


@dataclass(slots=True)
class MessageSlot(ValueSlot):
    """One message. It is not copied into the process, where few messages are read twice."""

    def note(self, event: str, value: Any = None) -> None:  # noqa: ARG002
        counters = self.components.counters
        counters.message_hits += event == "hit"
        counters.message_misses += event == "miss"

    def read(self) -> Awaitable[Reading]:
        return self.components.entries.read(self.key, self.field, model=self.model)


class MessagesById(Values):
    """
    The half of `cache.messages` that knows messages by their ids.

    `scope` is whose messages they are: put the organization into it, so that nobody reads
    another's. A value is plain data, bytes or a model.
    """

    def __init__(self, components: Components) -> None:
        super().__init__(components, "message", named="scope")

    async def get_many(
        self, ids: Iterable[str], *, scope: str, model: type[BaseModel] | None = None
    ) -> dict[str, Any]:
        """The hits among many messages, by id. Reads a hundred by one MGET."""
        slots = self._slots(ids, scope, model)
        if not self._options.enabled:
            return {}
        found = {}
        for i, reading in (await self._read(slots)).items():
            if reading is None:
                self._components.counters.bypassed += 1
                continue
            slots[i].note("hit" if reading.fresh else "miss")
            if reading.fresh and reading.value is not None:
                found[i] = reading.value
        return found

    async def get_or_load_many(
        self,
        ids: Iterable[str],
        loader: Callable[[list[str]], Awaitable[Mapping[str, T]]],
        *,
        scope: str,
        model: type[BaseModel] | None = None,
    ) -> dict[str, T]:
        """
        Return messages by id, from the cache or else from one call of `loader`.

        The loader gets the ids that are missing, at most 100 at a time, and returns their
        messages. See `AgentStateCache.get_or_load_many`.

        Raises:
            LoaderTimeout: LETTA_CACHE_LOADER_TIMEOUT_S passed. Otherwise what the loader raises.
        """
        slots = self._slots(ids, scope, model)
        readings = await self._read(slots) if self._options.enabled else {}
        found = {i: r.value for i, r in readings.items() if r and r.fresh}
        for i in found:
            slots[i].note("hit")
        missing = {i: slot for i, slot in slots.items() if i not in found}
        call = LoadOptions(hard_timeout_s=self._options.loader_timeout_s)
        found |= await self._get_or_load_many(missing, loader, call, first=readings)
        return {i: found[i] for i in slots if found.get(i) is not None}

    async def lease_many(self, ids: Iterable[str], *, scope: str) -> dict[str, Lease]:
        """
        The right to `put_many`, to be taken before the messages are committed.

        It ends when another writes or puts the message, or after LETTA_CACHE_LEASE_S. An id is
        absent while it is being written, or while the server is away.
        """
        slots = self._slots(ids, scope)
        leased: dict[str, Lease] = {}
        if self._options.enabled:
            leases = await asyncio.gather(*(_steal(slot) for slot in slots.values()))
            leased = {i: lease for i, lease in zip(slots, leases, strict=True) if lease}
        return leased

    async def put_many(
        self,
        messages: Mapping[str, Any] | Iterable[Any],
        *,
        scope: str,
        leases: Mapping[str, Lease] | None = None,
    ) -> set[str]:
        """
        Store messages that were just committed, and return the ids of those that are stored.

        The others are invalidated, so that nothing older is served of any. Without `leases`,
        the later of two puts wins, not the later commit: enough for messages that nobody else
        can have changed yet. With the leases of `lease_many` from before the commit, a message
        that anybody else has written since is not stored.

        Args:
            messages: values by id, or dicts or models that have an `id`.
            leases: those of messages that are not put are given back, as after a rollback.

        Raises:
            NotEncodable: a part of a message would not come back as given. None is stored.
        """
        values = _by_id(messages)
        slots = self._slots(values, scope)
        if not self._options.enabled:
            return set()
        stored: set[str] = set()
        try:
            if leases is None:
                leases = await self.lease_many(slots, scope=scope)
            held = [i for i in slots if i in leases]
            puts = (self._put(slots[i], leases[i], values[i]) for i in held)
            unused = self._slots([i for i in leases if i not in slots], scope)
            given_back = (_release(slot, leases[i]) for i, slot in unused.items())
            outcomes = await all_of([*puts, *given_back])
            stored = {i for i, outcome in zip(held, outcomes, strict=False) if outcome}
        finally:
            rest = tuple((scope, i) for i in slots if i not in stored)
            if rest:
                await self._components.invalidation.deliver(Change(messages=rest))
        return stored

    async def invalidate_ids(self, *ids: str, scope: str) -> bool:
        """Invalidate messages, after the write has committed. As `Cache.invalidate`."""
        change = Change(messages=tuple((scope, i) for i in self._slots(ids, scope)))
        if not len(change) or not self._options.enabled:
            return True
        return await self._components.invalidation.deliver(change)

    def _slots(
        self, ids: Iterable[str], scope: str, model: type[BaseModel] | None = None
    ) -> dict[str, MessageSlot]:
        components = self._components
        check_name("scope", scope)
        key, ttl_s = components.keys.message, self._options.message_ttl_s
        return {
            i: MessageSlot(components, i, key(scope, i), _FIELD, None, model, ttl_s)
            for i in checked_names("ids", ids)
        }

    async def _read(self, slots: Mapping[str, MessageSlot]) -> dict[str, Reading | None]:
        """What is stored, by id; None while the server is away."""
        readings: dict[str, Reading | None] = dict.fromkeys(slots)
        ids = list(slots)
        for start in range(0, len(ids), AT_ONCE):
            chunk = ids[start : start + AT_ONCE]
            model = slots[chunk[0]].model
            places = [(slots[i].key, _FIELD) for i in chunk]
            with suppress(Away):
                read = await self._components.entries.read_many(places, model=model)
                readings.update(zip(chunk, read, strict=True))
        return readings

    async def _put(self, slot: MessageSlot, lease: Lease, value: Any) -> bool:
        try:
            return await self._store(slot, lease, value) > 0
        except Away:
            return False


async def _steal(slot: MessageSlot) -> Lease | None:
    with suppress(Away):
        lease = await slot.lease(Reading(), mode="steal")
        if isinstance(lease, Lease):
            return lease
    return None


async def _release(slot: MessageSlot, lease: Lease) -> None:
    with suppress(Away):
        await slot.components.entries.release(lease)


def _by_id(messages: Mapping[str, Any] | Iterable[Any]) -> dict[str, Any]:
    if isinstance(messages, Mapping):
        return dict(messages)
    values: dict[str, Any] = {}
    for message in messages:
        id_ = message.get("id") if isinstance(message, Mapping) else getattr(message, "id", None)
        if id_ is None:
            raise InvalidName("each message must have an id; or pass a mapping of ids to messages")
        check_name("ids", id_)
        values[id_] = message
    return values
