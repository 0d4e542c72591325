"""Reads, loads and stores values of one kind: the shared code of states, blocks and contexts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from cache.coherence.batch import LoadBatch, LoaderOfMany
from cache.coherence.change import Change
from cache.coherence.flight import Loader, LoadOptions
from cache.coherence.results import Lease, Reading, value_key
from cache.components import Components, Dependencies, ValueSlot
from cache.connection.protocol import Away
from cache.connection.tasks import all_of
from cache.encoding.envelope import Unreadable
from cache.errors import InvalidName, NotEncodable
from cache.keys import quoted
from cache.names import check_agent_id, check_name, checked_names

if TYPE_CHECKING:
    from pydantic import BaseModel

T = TypeVar("T")

# Most values of one write to the server, or of one call to a loader of many.
AT_ONCE = 100


class Values:
    """Values of one kind: states by scope, blocks by label, or contexts by hash."""

    def __init__(self, components: Components, kind: str, *, named: str = "name") -> None:
        self._components = components
        self._named = named  # the argument's name, for errors
        self._options = components.options
        self._kind = kind
        self._open = components.options.prefix + "{"

    def _slot(
        self,
        agent_id: str,
        name: str,
        organisation: str | None = None,
        model: type[BaseModel] | None = None,
        **how: Any,
    ) -> ValueSlot:
        check_agent_id(agent_id)
        if name != "" or self._named != "scope":
            check_name(self._named, name)
        key = self._open + agent_id + "}"
        if organisation is None:
            return ValueSlot(
                self._components, agent_id, key, f"{self._kind}:{name}", None, model, **how
            )
        check_name("organisation", organisation)
        # Quoted, so that two organizations and scopes never make one key.
        field = f"{self._kind}@{quoted(organisation)}:{name}"
        return ValueSlot(self._components, agent_id, key, field, organisation, model, **how)

    async def _get(self, slot: ValueSlot) -> Any:
        components = self._components
        if not components.options.enabled:
            return None
        if components.local is not None:
            held, value = self._copy(slot.key, slot.field, slot.model)
            if held:
                return value
        try:
            reading = await slot.read()
        except Away:
            components.counters.bypassed += 1
            return None
        slot.note("hit" if reading.fresh else "miss", reading.value)
        return reading.value if reading.fresh else None

    async def _get_or_load(
        self, slot: ValueSlot, loader: Loader, call: LoadOptions, first: Reading | None = None
    ) -> Any:
        components = self._components
        if not components.options.enabled:
            return await loader()
        if components.local is not None:
            held, value = self._copy(slot.key, slot.field, slot.model)
            if held:
                return value
        return await components.flights.get_or_load(slot, loader, call, first)

    async def _get_or_load_many(
        self,
        slots: Mapping[str, ValueSlot],
        loader: LoaderOfMany,
        call: LoadOptions,
        first: Mapping[str, Reading | None] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """
        The values by id, except None. The loader gets at most `AT_ONCE` ids in one call.

        Args:
            first: what the caller has read already.
        """
        if not self._options.enabled:
            loaded = await loader(list(slots)) if slots else {}
            return {i: loaded[i] for i in slots if loaded.get(i) is not None}
        found: dict[str, Any] = {}
        ids = list(slots)
        for start in range(0, len(ids), AT_ONCE):
            chunk = {i: slots[i] for i in ids[start : start + AT_ONCE]}
            found |= await self._get_or_load_chunk(chunk, loader, call, first)
        return found

    async def _get_or_load_chunk(
        self,
        slots: Mapping[str, ValueSlot],
        loader: LoaderOfMany,
        call: LoadOptions,
        first: Mapping[str, Reading | None],
    ) -> dict[str, Any]:
        batch = LoadBatch(loader, slots)

        async def one(id_: str, slot: ValueSlot) -> Any:
            slot.batch = batch
            try:
                return await self._get_or_load(slot, partial(batch.load, id_), call, first.get(id_))
            finally:
                batch.decided(id_)

        calls = (one(id_, slot) for id_, slot in slots.items())
        values = await all_of(calls)
        return {i: v for i, v in zip(slots, values, strict=True) if v is not None}

    async def _set(self, slot: ValueSlot, value: Any) -> bool:
        components = self._components
        if not components.options.enabled:
            return False
        stored = 0
        with suppress(Away):
            lease = await slot.lease(Reading(), mode="steal")
            if isinstance(lease, Lease):  # else the server restarted, or a write is under way
                stored = await self._store(slot, lease, value)
        if stored > 0:
            await components.invalidation.announce(slot.agent_id)
        else:
            # The stored value may be older than the caller's.
            await components.invalidation.deliver(Change(agents=(slot.agent_id,)))
        return stored > 0

    async def _store(self, slot: ValueSlot, lease: Lease, value: Any) -> int:
        try:
            return await slot.store(lease, value)
        except (NotEncodable, InvalidName):
            await self._components.entries.release(lease)
            raise

    def _copy(self, key: str, field: str, model: type[BaseModel] | None) -> tuple[bool, Any]:
        """(True, value) from the local copies, else (False, None)."""
        local = self._components.local
        copy = local.get(key, field) if local is not None else None
        if copy is None or not self._components.entries.connection.trusted:
            return False, None
        if copy.stored is None:
            return True, copy.value
        try:
            return True, self._components.entries.envelopes.open(
                copy.stored, value_key(key, field), model
            )
        except Unreadable:
            return False, None


class NamedValues(Values):
    """
    Values by agent and name: `cache.agents.blocks` by label, `cache.agents.contexts` by hash.

    They belong to the agent's entry, so `cache.agents.invalidate` forgets them too.
    """

    async def get(self, agent_id: str, name: str, *, model: type[BaseModel] | None = None) -> Any:
        """The stored value, or None on a miss or while the server is away."""
        return await self._get(self._slot(agent_id, name, model=model))

    async def get_or_load(
        self,
        agent_id: str,
        name: str,
        loader: Callable[[], Awaitable[T]],
        *,
        ttl_s: float | None = None,
        depends_on: Dependencies = (),
        model: type[BaseModel] | None = None,
    ) -> T:
        """The stored value, or else the loader's. See `AgentStateCache.get_or_load`."""
        dependencies = checked_dependencies(depends_on)
        slot = self._slot(agent_id, name, model=model, ttl_s=ttl_s, dependencies=dependencies)
        call = LoadOptions(hard_timeout_s=self._options.loader_timeout_s)
        value: T = await self._get_or_load(slot, loader, call)
        return value

    async def set(
        self, agent_id: str, name: str, value: Any, *, ttl_s: float | None = None
    ) -> bool:
        """Store a value. False when it was not stored. See `AgentStateCache.set`."""
        return await self._set(self._slot(agent_id, name, ttl_s=ttl_s), value)


def checked_dependencies(names: Dependencies) -> Dependencies:
    """
    Check names that a value depends on. Names from a function are checked when it returns them.

    Raises:
        InvalidName: see `checked_names`.
    """
    return names if callable(names) else checked_names("depends_on", names)
