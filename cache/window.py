"""Reads, leases and stores the window of one conversation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cache.coherence.results import Changed, Held, Intended, Lease, Reading, value_key
from cache.components import Components
from cache.connection import scripts
from cache.encoding.envelope import Unreadable
from cache.encoding.models import is_model
from cache.keys import (
    CACHE_LARGE,
    CACHE_MOST_MESSAGE_BYTES,
    CACHE_STAGED_TTL_MS,
    staged_of,
)
from cache.names import check_agent_id, check_name
from cache.records import Pairs, Records, is_large, size_of

Message = dict[str, Any]
# Scores of sorted sets are doubles, which are exact up to here.
_MAX_SEQUENCE_ID = 2**53
# Most messages that one script stores: 3 ms of the server.
_MOST_AT_ONCE = 1000


class Windows:
    """The scripts and the encoding that all windows of a cache share."""

    def __init__(self, components: Components, records: Records) -> None:
        self.components = components
        self.records = records
        self.list_script = scripts.load(__package__, "messages_list")
        self.fill_script = scripts.load(__package__, "messages_fill", ".coherence")

    def slot(
        self, agent_id: str, conversation: str, limit: int, before: int | None = None
    ) -> WindowSlot:
        check_agent_id(agent_id)
        check_name("conversation", conversation)
        keys = self.components.keys
        return WindowSlot(
            self, agent_id, conversation, limit,
            keys.windows(agent_id), keys.window(agent_id, conversation),
            keys.aside(agent_id, conversation), before,
        )  # fmt: skip

    def pairs(self, oldest_first: Sequence[Message], window: str) -> Pairs | None:
        """sequence_id, record, ... for the scripts. None if one is too large, or they are too many."""
        pairs: Pairs = []
        most = min(self.components.options.max_value_bytes, CACHE_MOST_MESSAGE_BYTES)
        if len(oldest_first) > _MOST_AT_ONCE:
            return None
        for message in oldest_first:
            record = self.records.seal(message, window.encode())
            if len(record) > most:
                self.components.counters.too_large += 1
                return None
            pairs += (message["sequence_id"], record)
        return pairs


@dataclass(slots=True)
class WindowSlot:
    """One conversation's window, for the read-through."""

    home: Windows
    agent_id: str
    conversation: str
    limit: int
    key: str
    window: str
    aside: str
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
        counters = self.home.components.counters
        counters.window_hits += event == "hit"
        counters.window_misses += event == "miss"

    def wait(self) -> None:
        """Do nothing: windows are never loaded together."""

    def learn(self, value: Any) -> None:
        """Do nothing: messages have no classes."""

    def copies(self, value: Any) -> Callable[[], Any]:
        return self.home.components.entries.envelopes.copies(value)

    async def read(self) -> Reading:
        """Read a page and the window's state by one script, so that they agree."""
        components = self.home.components
        connection = components.entries.connection
        before = "" if self.before is None else self.before
        run_of = components.entries.run_of
        keys = (self.key, value_key(self.key, self.field), self.window)
        args = (run_of(self.key), before, self.limit)
        state, members, *more = await connection.run(self.home.list_script, keys, args)
        if more:
            members = await self._rest(state, members, more[0])
        state = state or b""
        if state and state[:8] != run_of(self.key):
            connection.unguarded.doubt(self.key)
            members = None
        if members is None or not connection.trusted:
            return Reading(seen=state[8:16])
        key, fields = self.window.encode(), state[16:].split(b":", 6)
        try:
            if fields[6:] != [key]:
                raise Unreadable("the window belongs to another key")
            messages = self.home.records.open_all(members, key)
        except Unreadable:
            components.counters.unreadable += 1
            return Reading(seen=state[8:16])
        complete = fields[4] in {b"1", b"3"}
        return Reading(True, True, messages, seen=state[8:16], complete=complete)

    async def _rest(self, state: bytes, members: list[bytes], last: bytes) -> list[bytes] | None:
        """A large page, of which `members` are read up to `last`; None if the window has changed."""
        connection, run_of = (
            self.home.components.entries.connection,
            self.home.components.entries.run_of,
        )
        keys = (self.key, value_key(self.key, self.field), self.window)
        more: list[bytes] = [last]
        while more:
            limit = self.limit - len(members) if self.limit else 0
            args = (run_of(self.key), more[0], limit)
            now, part, *more = await connection.run(self.home.list_script, keys, args)
            if now != state or part is None:
                return None
            members += part
        return members

    async def lease(self, seen: Reading) -> Lease | Held | Changed | Intended:
        entries, keys = self.home.components.entries, self.home.components.keys
        intents = keys.window_intents(self.agent_id, self.conversation)
        # Invalidating one conversation leaves the version, which the agent's windows share.
        return await entries.lease(
            self.key, self.field, intents, seen.seen, mode="grant", once=True
        )

    async def prepare(self, lease: Lease) -> None:
        """Do nothing: a window depends on nothing else."""

    async def store(self, lease: Lease, value: Any, load_s: float) -> int:  # noqa: ARG002
        components, home = self.home.components, self.home
        options = components.options
        oldest_first = value[: options.message_window][::-1]
        # The loader returned fewer than asked for, so it has reached the beginning.
        complete = len(value) < self.limit and len(value) <= options.message_window
        pairs = home.pairs(oldest_first, self.window)
        if pairs is None:
            return -1
        if not await components.room.left(lease.key, size_of(pairs)):
            return -1
        ttl_ms = max(int(options.message_ttl_s * 1000), 1)
        head = (
            lease.token,
            lease.version,
            lease.run,
            ttl_ms,
            int(complete),
            options.message_window,
        )
        keys = (*lease.keys, self.window, self.aside)
        entries = components.entries
        staged = ""
        if is_large(pairs):
            staged = staged_of(self.key, lease.token)
            await self._send_before(staged, pairs)
            pairs = [""]
        fill = entries.connection.run(home.fill_script, keys, (*head, *pairs))
        stored = await entries.confirm(lease, fill)
        if staged and not stored:
            await entries.connection.execute("UNLINK", staged)
        if stored > 2:
            return 0  # the window has appends that the loaded messages may lack
        if stored == 2:
            components.backplane.wake(self.entry)
        return stored

    async def _send_before(self, staged: str, pairs: Pairs) -> None:
        """Send the messages of a fill in commands of bounded size."""
        connection, at = self.home.components.entries.connection, 0
        while at < len(pairs):
            start, size = at, 0
            while at < len(pairs) and (at == start or size + len(pairs[at + 1]) <= CACHE_LARGE):
                size += len(pairs[at + 1])
                at += 2
            # In one write: a process that dies in between would leave a key without a TTL.
            part = ("ZADD", staged, *pairs[start:at])
            await connection.execute_many([part, ("PEXPIRE", staged, CACHE_STAGED_TTL_MS)])


def require_page(limit: int) -> None:
    if limit < 1:
        raise ValueError(f"limit must be at least 1, not {limit}")


def newest_first(messages: Iterable[Any]) -> Sequence[Message]:
    """Messages as dicts, sorted. Raises ValueError if a sequence_id is not valid."""
    rows = [m.model_dump(mode="json") if is_model(m) else dict(m) for m in messages]
    for row in rows:
        number = row.get("sequence_id")
        if not isinstance(number, int) or not 0 <= number < _MAX_SEQUENCE_ID:
            raise ValueError(
                f"a message's sequence_id must be an integer from 0 to 2**53 - 1, not {number!r:.40}"
            )
    rows.sort(key=lambda row: -row["sequence_id"])
    return rows


def page_before(
    window: Sequence[Message], message_id: str, limit: int, *, complete: bool
) -> Sequence[Message] | None:
    """The page before the message of an id, or None if the window does not have all of it."""
    for index, message in enumerate(window):
        if message.get("id") == message_id:
            page = window[index + 1 : index + 1 + limit]
            return page if complete or len(page) == limit else None
    return None
