"""
Caches the newest messages of each conversation, in windows without gaps.

A window is a sorted set by sequence_id, and a state: its newest message, its length, and
whether it reaches the conversation's beginning. It answers only while it has every
message up to the newest:

- An append names its predecessor. While that is missing, the append is kept aside and
  the window does not answer.
- An append during a load is kept aside too, and the load's window is stored with it.
- A load that began after the call of an append has read its messages. The append changes
  nothing then: a late copy of it must not bring deleted messages back.

All conversations share one sequence of sequence_ids, so gaps are normal:
predecessors are compared, never `+ 1`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from cache.coherence.change import Change
from cache.coherence.clock import boot_clock
from cache.coherence.flight import LoadOptions
from cache.coherence.results import lease_key, value_key
from cache.components import Components
from cache.connection import scripts
from cache.connection.pool import OUTAGE
from cache.connection.protocol import Away
from cache.errors import InvalidName, NotEncodable
from cache.keys import CACHE_ASIDE_APPENDS, CACHE_ASIDE_BYTES, CACHE_ASIDE_TTL_MS
from cache.messages_by_id import MessagesById
from cache.names import check_agent_id, check_name
from cache.records import Pairs, Records, steps_of
from cache.window import (
    Message,
    Windows,
    WindowSlot,
    newest_first,
    page_before,
    require_page,
)

# A late reply gives only a poor estimate of the call's time, so an append is sent this often.
_TRIES = 3

MessagesLoader = Callable[[], Awaitable[Iterable[Any]]]


class MessageCache(MessagesById):
    """
    `cache.messages`. In windows, messages are dicts or models with an integer `sequence_id`.

    The methods of many ids keep single messages, whatever conversation they belong to.
    """

    def __init__(self, components: Components, records: Records) -> None:
        super().__init__(components)
        self.components = components
        self._windows = Windows(components, records)
        self._append = scripts.load(__package__, "messages_append", ".coherence")

    async def list(
        self,
        agent_id: str,
        *,
        before: int | str | None = None,
        limit: int = 50,
        conversation: str = "default",
    ) -> Sequence[Message] | None:
        """
        Return a page, newest first, or None if the window cannot answer.

        Args:
            before: only messages before this sequence_id, or before the message of this id.
            limit: size of the page. It is shorter only at the conversation's beginning.
        """
        require_page(limit)
        check_agent_id(agent_id)
        check_name("conversation", conversation)
        if isinstance(before, str):
            check_name("before", before)
        elif before is not None and not isinstance(before, int):
            raise InvalidName("before must be a sequence_id, a message's id or None")
        if not self.components.options.enabled:
            return None
        message_id = before if isinstance(before, str) else None
        seek = before if isinstance(before, int) else None
        slot = self._windows.slot(agent_id, conversation, 0 if message_id else limit, seek)
        try:
            reading = await slot.read()
        except Away:
            self.components.counters.bypassed += 1
            return None
        page: Sequence[Message] | None = reading.value if reading.fresh else None
        if message_id is not None and page is not None:
            page = page_before(page, message_id, limit, complete=reading.complete)
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
        Return the newest `limit` messages, newest first, from the window or else from `loader`.

        The loader returns at least the newest `limit` committed messages, in any order, and
        fewer only if the conversation has no more. Leases, waiting and outages are as in
        `AgentStateCache.get_or_load`.

        Raises:
            LoaderTimeout: LETTA_CACHE_LOADER_TIMEOUT_S passed. Otherwise what the loader raises.
        """
        require_page(limit)
        check_agent_id(agent_id)
        check_name("conversation", conversation)

        async def load() -> Sequence[Message]:
            return newest_first(await loader())

        if not self.components.options.enabled:
            return (await load())[:limit]
        slot = self._windows.slot(agent_id, conversation, limit)
        call = LoadOptions(hard_timeout_s=self.components.options.loader_timeout_s)
        messages: Sequence[Message] = await self.components.flights.get_or_load(slot, load, call)
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
        Add messages that were just committed. True if the window answers now, with them.

        After it returns, no page lacks them. Appends may arrive in any order. False if there is
        no window, or until the message before them arrives or the next load ends.

        Args:
            after: sequence_id of the message before the first of these; None if that is the
                conversation's first message.
        """
        check_agent_id(agent_id)
        check_name("conversation", conversation)
        added = list(reversed(newest_first(messages)))
        if not added or not self.components.options.enabled:
            return False
        slot, called_at = self._windows.slot(agent_id, conversation, 1), boot_clock()
        self.components.counters.appends += 1
        # Callers that come from now on start another load.
        self.components.flights.drop(slot.entry + "\0")
        try:
            try:
                pairs = self._windows.pairs(added, slot.window)
            except NotEncodable:
                # The messages are committed, so a window without them must not be served.
                await self.invalidate(agent_id, conversation=conversation)
                raise
            if pairs is None:
                await self.invalidate(agent_id, conversation=conversation)
                return False
            outcome = 0
            for part in (pairs,) if len(pairs) == 2 else steps_of(pairs):
                outcome = await self._run_append(slot, after, part, called_at)
                if outcome <= 0:
                    break
                after = part[-2]
        except (Away, *OUTAGE, asyncio.CancelledError) as exc:
            # The append may not have arrived, so the window must not be served.
            self.components.invalidation.miss_window(agent_id, conversation)
            if isinstance(exc, (ResponseError, asyncio.CancelledError)):
                raise
            return False
        finally:
            self.components.flights.drop(slot.entry + "\0")
        self.components.counters.windows_dropped += outcome < 0
        self.components.counters.appends_aside += outcome == 2
        return outcome == 1

    async def _run_append(
        self, slot: WindowSlot, after: int | None, pairs: Pairs, called_at: float
    ) -> int:
        options, entries = self.components.options, self.components.entries
        keys = (
            slot.key,
            value_key(slot.key, slot.field),
            lease_key(slot.key, slot.field),
            slot.window,
            slot.aside,
        )
        bounds = (
            "" if after is None else after,
            max(int(options.message_ttl_s * 1000), 1),
            options.message_window,
            CACHE_ASIDE_TTL_MS,
            CACHE_ASIDE_APPENDS,
            CACHE_ASIDE_BYTES,
        )
        for _ in range(_TRIES):
            run = entries.run_of(slot.key)
            called_us = entries.clock.passed_us(called_at, run)
            args = (run, *bounds, called_us, *pairs)
            outcome: int = await entries.connection.run(self._append, keys, args)
            if outcome <= 2:
                return outcome
            # A load began since the call, or too little was known of the server's time.
            if run == entries.run_of(slot.key):
                entries.clock.learn(outcome, run)
            if not called_us:  # the first that this process learns of this server's time
                called_at = boot_clock()
        await self.invalidate(slot.agent_id, conversation=slot.conversation)
        return -1

    async def invalidate(self, agent_id: str, *, conversation: str | None = None) -> bool:
        """Invalidate one conversation's window, or all of the agent's. As `agents.invalidate`."""
        check_agent_id(agent_id)
        if conversation is not None:
            check_name("conversation", conversation)
        if not self.components.options.enabled:
            return True
        change = Change(windows=(agent_id,))
        if conversation is not None:
            change = Change(conversations=((agent_id, conversation),))
        return await self.components.invalidation.deliver(change)
