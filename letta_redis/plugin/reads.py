"""
Reads agents through the cache.

The cache holds the state as JSON, with its secrets encrypted. Each caller decodes its
own copy, because Letta's agent loop modifies the state that it gets. A read of some parts
cuts them out of the full state, if that is cached. A state that this process invalidates
is reloaded in the background, because a step writes its agent twice and then reads it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from cache.errors import InvalidName
from cache.logs import get_logger
from letta_redis.plugin import states
from letta_redis.plugin.includes import ALL, cut, rows_in, scope_of

if TYPE_CHECKING:
    from cache.service import Cache
    from letta_redis.plugin.begun import Runs

log = get_logger("letta_redis")

Load = Callable[[], Awaitable[Any]]
LoadMany = Callable[[list[str]], Awaitable[list[Any]]]


class ReadFailed(Exception):
    """Carries the exception of Letta's own read through the cache."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(repr(cause))
        self.cause = cause


class Loading:
    """Letta's own read as a loader of the cache. Keeps the loaded states for the call that made it."""

    def __init__(self, *, sealed: bool) -> None:
        self.failed: ReadFailed | None = None
        self._sealed = sealed
        self._found: dict[str, tuple[bytes, Any]] | None = {}

    async def load(self, read: Callable[[], Awaitable[list[Any]]]) -> dict[str, bytes]:
        """
        Run the read, leaving secrets encrypted; return the encoded states by id.

        Raises:
            ReadFailed: the read raised. It is also in `failed`.
        """
        try:
            with states.left_encrypted():
                found = await read()
            encoded = {s.id: (await states.encode(s, sealed=self._sealed), s) for s in found}
        except Exception as exc:  # noqa: BLE001  (distinguished from errors of the cache)
            self.failed = ReadFailed(exc)
            raise self.failed from None
        if self._found is not None:
            self._found |= encoded
        return {agent_id: data for agent_id, (data, _) in encoded.items()}

    def own(self, agent_id: str, data: bytes) -> Any:
        """The state that this call has loaded, if `data` is its encoding."""
        encoded, state = (self._found or {}).get(agent_id, (None, None))
        return state if encoded is data else None

    def end(self) -> None:
        """End the call. The cache may still run the loader for others."""
        self._found = None


class Reads:
    """Reads these parts of one organization's agents."""

    def __init__(self, cache: Cache, runs: Runs, organisation: str, parts: frozenset[str]) -> None:
        import letta

        self._agents = cache.agents
        self._runs = runs
        self._sealed = cache.options.keyring is not None
        self._organisation = organisation
        self._parts = parts
        self._full, self._own = (scope_of(each, letta.__version__) for each in (ALL, parts))

    async def one(self, agent_id: str, load: Load) -> Any:
        """The agent's state, from the cache or `load`. Raises what `load` raises."""

        async def read() -> list[Any]:
            return [await load()]

        async def loader() -> bytes:
            return (await loading.load(read))[agent_id]

        loading = Loading(sealed=self._sealed)
        try:
            data = await self._read(agent_id, loader)
            state = loading.own(agent_id, data)
            if state is not None:
                return state
            if data != states.NOT_CACHED:
                return await states.decode(data)
        except (ReadFailed, InvalidName):
            pass  # our own is raised below; after another caller's, we load
        except Exception:
            log.exception("letta.cache_read_failed", agent_id=agent_id)
        finally:
            loading.end()
        if loading.failed is not None:
            raise loading.failed.cause
        return await load()

    async def many(self, agent_ids: list[str], load: LoadMany) -> list[Any]:
        """The states of the agents that exist, each once. Raises what `load` raises."""

        async def loader(ids: list[str]) -> dict[str, bytes]:
            return await loading.load(lambda: load(ids))

        loading = Loading(sealed=self._sealed)
        found: dict[str, Any] = {}
        left = list(dict.fromkeys(agent_ids))
        try:
            for agent_id, data in (await self._read_many(left, loader)).items():
                state = loading.own(agent_id, data)
                if state is None and data != states.NOT_CACHED:
                    state = await states.decode(data)
                found[agent_id] = state
            left = [agent_id for agent_id, state in found.items() if state is None]
        except (ReadFailed, InvalidName):
            pass  # as above
        except Exception:
            log.exception("letta.cache_read_failed", agents=len(left))
        finally:
            loading.end()
        if loading.failed is not None:
            raise loading.failed.cause
        if left:
            found |= {state.id: state for state in await load(left)}
        return [found[i] for i in dict.fromkeys(agent_ids) if found.get(i) is not None]

    async def _read(self, agent_id: str, loader: Callable[[], Awaitable[bytes]]) -> bytes:
        agents, organisation = self._agents, self._organisation
        if self._own != self._full:
            full = await agents.get(agent_id, scope=self._full, organisation=organisation)
            if full:
                return cut(full, self._parts)
        return await agents.get_or_load(
            agent_id, loader, scope=self._own, organisation=organisation, depends_on=rows_in,
            refill=lambda: not self._runs.under_way(agent_id),
        )  # fmt: skip

    async def _read_many(
        self, agent_ids: list[str], loader: Callable[[list[str]], Awaitable[dict[str, bytes]]]
    ) -> dict[str, bytes]:
        agents, organisation = self._agents, self._organisation
        found: dict[str, bytes] = {}
        if self._own != self._full:
            full = await agents.get_many(agent_ids, scope=self._full, organisation=organisation)
            found = {i: cut(data, self._parts) for i, data in full.items() if data}
        left = [agent_id for agent_id in agent_ids if agent_id not in found]
        return found | await agents.get_or_load_many(
            left, loader, scope=self._own, organisation=organisation, depends_on=rows_in
        )
