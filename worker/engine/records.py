"""
The records that polls and scripts exchange: claims, poll replies and the ends of jobs.

An end is a list `[kind, id, claim, queue number, details, group]`, sent in msgpack
(lua/_ends.lua reads it). The group is its number in the history (tally.py), if it is counted. Kinds and their details:

done     {result, ttl, unique, gather, jobs}     completed or aborted
retry    {delay (ms), tries}                     failed; the try is charged
back     {due}                                   given back; nothing is charged
started  {unique}                                still runs; frees a key unique while queued
park     {most (ms), reason, error, result, ttl} unknown function; dead after `most`
dead     {reason, error, tries, name, result, ttl, unique}

`ttl` is in ms, None for no expiry; without `result` none is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import methodcaller
from typing import Any

import msgspec

from cache.encoding.codec import LUA_TEXT_HEAD, lua_text
from worker.numbers import whole
from worker.queue.priority import Priority
from worker.queue.staging import LARGE

# Queues by urgency. A queue's number is its position here, from 1.
ORDER = (Priority.CRITICAL, Priority.HIGH, Priority.DEFAULT, Priority.LOW)
QUEUE_WORDS = tuple(priority.value for priority in ORDER)
CLAIM_FIELDS = 5
# No policy allows this many tries, so no worker wrote a larger count.
MOST_TRIES = 1_000_000
# What lua/_body.lua returns instead of a body that cannot be read.
_FAULTS = {-1: "job:<id> is not a string", -2: "job:<id> is over 64 MiB"}
# The same for a body that a plain GET has to read.
READ_APART = -3
_encode = msgspec.msgpack.Encoder().encode
_is_first_lease = methodcaller("endswith", b"|0")
End = list[Any]
Group = list[Any]  # of equal ends, for the history: tally.py


@dataclass(slots=True, eq=False)
class Claim:
    """A job that this worker holds, from its claim to its end."""

    id: bytes
    body: bytes | None
    tries: int  # charged so far
    token: bytes  # the value of in-progress:<id>: the fencing token of its end
    number: int
    due: str
    stalled_count: int
    mark_ms: float | None  # when an abort was requested
    job_id: str = ""
    sent: tuple[str, str] | None = None  # id and token as an end has them; None: they are not UTF-8
    fault: str = ""  # why it cannot run: neither a client nor a worker wrote these keys
    started: bool = False
    vacated: bool = False  # its run is over and its slot is free; its end is being built
    ended: bool = False
    asked_again: bool = False  # its last try raised `Retry`
    function: str = "<unknown>"  # whose name this worker knows
    run_s: float = -1.0  # how long it ran, -1: it did not
    wait_s: float = 0.0  # from its due time to its start
    stop: str = ""  # why it was canceled: "timeout" | "abort" | "lost" | "shutdown"
    deadline: float = float("inf")  # loop time at which renewal of its lease stops
    timeout_s: float = 0.0
    held_at: float = 0.0  # loop time of the claim
    task: asyncio.Task[None] | None = None
    unique: str | None = None
    recorded: asyncio.Event | None = None

    @property
    def priority(self) -> Priority:
        return ORDER[self.number - 1]

    def end(self, kind: str, details: Mapping[str, Any]) -> End:
        id_, token = self.sent or (lua_text(self.id), lua_text(self.token))
        return [kind, id_, token, self.number, details]


@dataclass(frozen=True, slots=True)
class PollResult:
    """The result of a poll; times are Unix ms by the server's clock."""

    now: int
    next_due: int | None
    more: bool
    size: int
    scheduled: bool
    late: list[int] = field(default_factory=list)
    buried: list[int] = field(default_factory=list)
    poisoned: list[bytes] = field(default_factory=list)
    marks: dict[bytes, float] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    dropped: int = 0  # dead letters deleted to make room for newer ones

    @property
    def is_empty(self) -> bool:
        """Whether the server had no job and no schedule at all."""
        return self.size == 0 and self.next_due is None and not self.scheduled


@dataclass(frozen=True, slots=True)
class PollReply:
    """A raw reply of lua/poll.lua; its properties are cheap and parse no claims."""

    data: list[Any]

    @property
    def more(self) -> bool:
        return bool(self.data[2])

    @property
    def rows(self) -> list[Any]:
        """The argument of `read_claims`."""
        rows: list[Any] = self.data[9]
        return rows

    @property
    def claims(self) -> int:
        return len(self.rows) // CLAIM_FIELDS

    @property
    def has_rescued(self) -> bool:
        """Whether one of the claims is a stalled job: its lease lapsed before."""
        return not all(map(_is_first_lease, self.rows[3::CLAIM_FIELDS]))


def read_poll(reply: PollReply) -> PollResult:
    now, next_due, more, size, scheduled, late, buried, poisoned, marks, rows, dropped = reply.data
    return PollResult(
        now=now,
        next_due=None if next_due < 0 else next_due,
        more=bool(more),
        size=size,
        scheduled=bool(scheduled),
        late=[i - 1 for i in late],
        buried=[i - 1 for i in buried],
        poisoned=poisoned,
        marks={marks[i]: float(marks[i + 1]) for i in range(0, len(marks), 2)},
        claims=read_claims(rows),
        dropped=dropped,
    )


def read_claims(rows: list[Any]) -> list[Claim]:
    """Read rows of `CLAIM_FIELDS` values: id, body, tries, claim, abort mark."""
    return [_read_claim(rows, i) for i in range(0, len(rows), CLAIM_FIELDS)]


def _read_claim(rows: list[Any], at: int) -> Claim:
    id_, body, tries, token, mark = rows[at : at + CLAIM_FIELDS]
    try:
        sent = job_id, text = id_.decode(), token.decode()
    except UnicodeDecodeError:
        sent, job_id, text = None, id_.decode(errors="replace"), token.decode(errors="replace")
    _, number, due, stalled_count = text.rsplit("|", 3)
    charged, fault = 0, ""
    if tries is not None:
        charged = whole(tries, most=MOST_TRIES, fallback=-1)
        if charged < 0:
            charged, fault = 0, "retry:<id> is not a number of tries"
    if type(body) is int:
        fault, body = _FAULTS[body], None
    return Claim(
        id_,
        body,
        charged,
        token,
        int(number),
        due,
        int(stalled_count),
        None if mark is None else float(mark),
        job_id,
        sent,
        fault,
    )


def weight(end: End) -> tuple[int, int]:
    """Return the bytes of an end's parts: of those that its script carries, and of the large ones."""
    details = end[4]
    if "jobs" not in details and "gather" not in details:  # nearly all
        size = len(memoryview(details["result"])) if "result" in details else 0
        return (size, 0) if size <= LARGE else (0, size)
    small = large = 0
    for holder, name in _parts(end):
        size = len(memoryview(holder[name]))
        if size > LARGE:
            large += size
        else:
            small += size
    return small, large


def _parts(end: End) -> list[tuple[dict[str, Any], str]]:
    """Where an end has bytes of any size: the result, and what goes to the next jobs."""
    details = end[4]
    parts = [(details, "result")] if "result" in details else []
    if "jobs" in details:
        parts += [(job, "body") for job in details["jobs"]]
    if "gather" in details:
        parts.append((details["gather"], "value"))
    return parts


def split_large(ends: Sequence[End], token: str) -> tuple[list[End], dict[str, bytes]]:
    """
    Take the large parts out of ends: the ends name keys instead, and the dict has their values.

    The names derive from the poll's token, so a poll that is sent again writes the same keys.
    """
    apart: dict[str, bytes] = {}
    taken = []
    for end in ends:
        kind, id_, claim, number, details, *group = end
        if weight(end)[1]:
            details = dict(details)
            if "jobs" in details:
                details["jobs"] = [dict(job) for job in details["jobs"]]
            if "gather" in details:
                details["gather"] = dict(details["gather"])
        copy = [kind, id_, claim, number, details, *group]
        for holder, name in _parts(copy):
            data = memoryview(holder[name])
            if len(data) > LARGE:
                key = f"{token}:{len(apart)}"
                apart[key] = bytes(data[LUA_TEXT_HEAD:])
                holder[name] = [key]
        taken.append(copy)
    return taken, apart


def encode_ends(ends: Sequence[End]) -> bytes:
    """Encode ends for lua/poll.lua. One that cannot be encoded becomes a dead letter."""
    try:
        return _encode(ends)
    except Exception:  # noqa: BLE001  (msgspec raises different errors for different values)
        return _encode([_encodable(end) for end in ends])


def encode_groups(groups: Sequence[Group]) -> bytes:
    return _encode(groups)


def _encodable(end: End) -> End:
    try:
        _encode(end)
    except Exception as exc:  # noqa: BLE001
        kind = type(exc).__name__
        details = {"reason": "undecodable", "error": f"the job's end cannot be encoded: {kind}"}
        return ["dead", *end[1:4], {**details, "tries": 0, "name": ""}, *end[5:]]
    return end
