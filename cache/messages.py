"""
MessageCache: the newest messages of each conversation, as windows without holes.

A window is a sorted set by sequence_id beside its state (which message it ends
at, how many it holds, whether it reaches the conversation's beginning). It
answers only while it is contiguous to the newest message:

- an append names its predecessor; where the window does not end there, or
  ends after the new message (a transaction that committed late), it is dropped;
- every append takes away the right to store what is being loaded.

sequence_id is one sequence over all conversations, so gaps are normal:
predecessors are compared, never `+ 1`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from redis.exceptions import ResponseError

from cache import scripts
from cache.entries import Changed, Held, Lease, Reading, lease_key, value_key
from cache.envelope import Unreadable
from cache.lane import Away
from cache.pool import OUTAGE
from cache.readthrough import Call
from cache.records import Records
from cache.slots import Parts

Message = dict[str, Any]
Pairs = list[Any]  # sequence_id, record, sequence_id, record, ...
MessagesLoader = Callable[[], Awaitable[Iterable[Any]]]
# Sorted sets keep scores as doubles, exact up to here.
_MAX_SEQUENCE_ID = 2**53


@dataclass(slots=True)
class WindowSlot:
    """One conversation's window, as the read-through sees it."""

    cache: MessageCache
    agent_id: str
    conversation: str
    limit: int
    key: str
    window: str
    before: int | None = None

    @property
    def name(self) -> str:
        return f"{self.entry}\0{self.limit}"

    @property
    def field(self) -> str:
        return f"state:{self.conversation}"

    @property
    def entry(self) -> str:
        return f"{self.key}\0{self.conversation}"

    def note(self, event: str, value: Any = None) -> None:  # noqa: ARG002
        counters = self.cache.parts.counters
        counters.window_hits += event == "hit"
        counters.window_misses += event == "miss"

    def learn(self, value: Any) -> None:
        """Messages have no classes."""

    async def read(self) -> Reading:
        """One script call: the page and the state it must agree with, at one moment."""
        parts = self.cache.parts
        link = parts.entries.link
        before = "" if self.before is None else self.before
        keys = (self.key, value_key(self.key, self.field), self.window)
        args = (link.wire.incarnation, before, self.limit)
        reply = await link.run(self.cache.list_script, keys, args)
        state = (reply[0] if reply else None) or b""
        if len(reply) < 2 or state[:8] != link.wire.incarnation or not link.trusted:
            return Reading(seen=state[8:16])
        try:
            messages = self.cache.records.open_all(reply[1], self.window.encode())
        except Unreadable:
            parts.counters.unreadable += 1
            return Reading(seen=state[8:16])
        complete = state.endswith(b":1")
        return Reading(True, True, messages, seen=state[8:16], complete=complete)

    async def lease(self, seen: Reading) -> Lease | Held | Changed:
        return await self.cache.parts.entries.lease(self.key, self.field, seen.seen, b"")

    async def renew(self, lease: Lease) -> bool:
        return await self.cache.parts.entries.renew(lease)

    async def release(self, lease: Lease) -> bool:
        return await self.cache.parts.entries.release(lease)

    async def store(self, lease: Lease, value: Any, load_s: float) -> int:  # noqa: ARG002
        parts, cache = self.cache.parts, self.cache
        options = parts.options
        oldest_first = value[: options.message_window][::-1]
        # Fewer than asked for: the loader has reached the conversation's beginning.
        complete = len(value) < self.limit and len(value) <= options.message_window
        tail = str(oldest_first[-1]["sequence_id"]) if oldest_first else ""
        pairs = cache.pairs(oldest_first, self.window)
        if pairs is None:
            return -1
        state = b"".join((
            lease.incarnation, lease.token,
            lease.floor, f":{tail}:{len(oldest_first)}:{int(complete)}".encode(),
        ))  # fmt: skip
        ttl_ms = int(options.message_ttl_s * 1000)
        head = (lease.token, lease.floor, state, ttl_ms)
        keys = (*lease.keys, self.window)
        stored: int = await parts.entries.link.run(cache.fill_script, keys, (*head, *pairs))
        if stored:
            parts.counters.fills += 1
        else:
            parts.counters.fills_refused += 1
        if stored == 2:
            parts.backplane.wake(self.entry)
        return stored


class MessageCache:
    """`cache.messages`. Messages are dicts (or models) with an integer `sequence_id`."""

    def __init__(self, parts: Parts, records: Records) -> None:
        self.parts = parts
        self.records = records
        self.list_script = scripts.load("cache", "messages_list")
        self.fill_script = scripts.load("cache", "messages_fill")
        self._append = scripts.load("cache", "messages_append")

    def _slot(
        self, agent_id: str, conversation: str, limit: int, before: int | None = None
    ) -> WindowSlot:
        self.parts.keys.check(agent_id)
        keys = self.parts.keys
        return WindowSlot(
            self, agent_id, conversation, limit,
            keys.windows(agent_id), keys.window(agent_id, conversation), before,
        )  # fmt: skip

    async def list(
        self,
        agent_id: str,
        *,
        before: int | str | None = None,
        limit: int = 50,
        conversation: str = "default",
    ) -> Sequence[Message] | None:
        """
        A page, newest first, or None when the window cannot vouch for it.

        Args:
            before: only messages older than this sequence_id, or than the message of this id.
            limit: messages asked for; fewer come only at the conversation's beginning.
        """
        _require_page(limit)
        if not self.parts.options.enabled:
            return None
        message_id = before if isinstance(before, str) else None
        seek = before if isinstance(before, int) else None
        slot = self._slot(agent_id, conversation, 0 if message_id else limit, seek)
        try:
            reading = await slot.read()
        except Away:
            self.parts.counters.bypassed += 1
            return None
        page: Sequence[Message] | None = reading.value if reading.fresh else None
        if message_id is not None and page is not None:
            page = _page_before(page, message_id, limit, complete=reading.complete)
        slot.note("miss" if page is None else "hit")
        return page

    async def get_or_load(
        self,
        agent_id: str,
        loader: MessagesLoader,
        *,
        limit: int = 50,
        conversation: str = "default",
    ) -> Sequence[Message]:
        """
        The newest `limit` messages, newest first, from the window or else from `loader`.

        The loader gives the newest `limit` committed messages (more are welcome) in any
        order, and fewer only when the conversation has no more. Leases, waiting and outages
        are as in `AgentStateCache.get_or_load`.

        Raises:
            LoaderTimeout: the hard limit of the settings passed. Otherwise what the loader raises.
        """
        _require_page(limit)

        async def load() -> Sequence[Message]:
            return _newest_first(await loader())

        if not self.parts.options.enabled:
            return (await load())[:limit]
        slot = self._slot(agent_id, conversation, limit)
        call = Call(hard_timeout_s=self.parts.options.loader_timeout_s)
        messages: Sequence[Message] = await self.parts.flights.get_or_load(slot, load, call)
        return messages[:limit]

    async def append(
        self,
        agent_id: str,
        messages: Iterable[Any],
        *,
        after: int | None,
        conversation: str = "default",
    ) -> bool:
        """
        Add messages that were just committed. True when the window now ends with them.

        After it returns, no page lacks them: where they cannot be added in order (no window,
        another predecessor, a late commit) there is no window until the next load.

        Args:
            after: sequence_id of the message before the first of them; None when it is the
                conversation's first.
        """
        added = list(reversed(_newest_first(messages)))
        if not added or not self.parts.options.enabled:
            return False
        slot = self._slot(agent_id, conversation, 1)
        self.parts.counters.appends += 1
        # Whoever comes from now on starts a load of his own.
        self.parts.flights.drop(slot.entry + "\0")
        try:
            pairs = self.pairs(added, slot.window)
            if pairs is None:
                await self.invalidate(agent_id, conversation=conversation)
                return False
            outcome = await self._run_append(slot, after, pairs)
        except (Away, *OUTAGE, asyncio.CancelledError) as exc:
            # Whether it arrived is not known: what is there must not be served.
            self.parts.invalidation.miss_window(agent_id, conversation)
            if isinstance(exc, (ResponseError, asyncio.CancelledError)):
                raise
            return False
        finally:
            self.parts.flights.drop(slot.entry + "\0")
        if outcome < 0:
            self.parts.counters.windows_dropped += 1
        return outcome > 0

    async def _run_append(self, slot: WindowSlot, after: int | None, pairs: Pairs) -> int:
        options, link = self.parts.options, self.parts.entries.link
        keys = (
            slot.key,
            value_key(slot.key, slot.field),
            lease_key(slot.key, slot.field),
            slot.window,
        )
        args = (
            link.wire.incarnation,
            "" if after is None else after,
            int(options.message_ttl_s * 1000),
            options.message_window,
        )
        outcome: int = await link.run(self._append, keys, (*args, *pairs))
        return outcome

    async def invalidate(self, agent_id: str, *, conversation: str | None = None) -> None:
        """Forget one conversation's window, or with None those of all; as agents.invalidate."""
        if not self.parts.options.enabled:
            return
        if conversation is None:
            await self.parts.invalidation.entries([self.parts.keys.windows(agent_id)])
        else:
            await self.parts.invalidation.window(agent_id, conversation)

    def pairs(self, oldest_first: Iterable[Message], window: str) -> Pairs | None:
        """sequence_id, record, ... for the scripts; None when one is over the size limit."""
        pairs: Pairs = []
        for message in oldest_first:
            record = self.records.seal(message, window.encode())
            if len(record) > self.parts.options.max_value_bytes:
                self.parts.counters.too_large += 1
                return None
            pairs += (message["sequence_id"], record)
        return pairs


def _require_page(limit: int) -> None:
    if limit < 1:
        raise ValueError("a page holds at least one message")


def _newest_first(messages: Iterable[Any]) -> Sequence[Message]:
    rows = [m.model_dump(mode="json") if isinstance(m, BaseModel) else dict(m) for m in messages]
    for row in rows:
        number = row.get("sequence_id")
        if not isinstance(number, int) or not 0 <= number < _MAX_SEQUENCE_ID:
            raise ValueError("a message needs a sequence_id, an integer from 0 to 2**53 - 1")
    rows.sort(key=lambda row: -row["sequence_id"])
    return rows


def _page_before(
    window: Sequence[Message], message_id: str, limit: int, *, complete: bool
) -> Sequence[Message] | None:
    for index, message in enumerate(window):
        if message.get("id") == message_id:
            page = window[index + 1 : index + 1 + limit]
            return page if complete or len(page) == limit else None
    return None
