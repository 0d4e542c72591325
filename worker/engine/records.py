"""
What the pump and its scripts tell each other: claims, and the ends of jobs.

An end is a list `[kind, id, claim, queue's number, details]`, sent in msgpack
(lua/_ends.lua reads it). Kinds and their details:

done     {result, ttl, unique, gather, jobs}     also for an aborted job
retry    {delay (ms), tries}                     a charged try
back     {due}                                   given back; nothing charged
started  {unique}                                runs: frees a key unique while queued
park     {most (ms), reason, error, result, ttl} unknown here; dead after `most`
dead     {reason, error, tries, name, result, ttl, unique}

`ttl` is ms, None for ever; an absent `result` is not stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from cache.encoding.codec import lua_text
from worker.keys import QueueKeys
from worker.numbers import whole
from worker.queue.priority import Priority

# The order in which queues are taken from; a queue's number is its place from 1.
ORDER = (Priority.CRITICAL, Priority.HIGH, Priority.DEFAULT, Priority.LOW)
CLAIM_FIELDS = 5
# No policy allows as many; a larger count was not written by a worker.
MOST_TRIES = 1_000_000
# What lua/_body.lua says in a body's place.
_FAULTS = {-1: "job:<id> is not a string", -2: "job:<id> is over 64 MiB"}
_encode = msgspec.msgpack.Encoder().encode
End = list[Any]


@dataclass(frozen=True, slots=True)
class EngineKeys:
    """Names of one queue; `queue_name` None is the prefix's own, arq's name under `arq:`."""

    base: QueueKeys
    queue_name: str | None = None

    @property
    def default_queue(self) -> str:
        return self.queue_name or self.base.queue()

    @property
    def queues(self) -> list[str]:
        """By number: critical, high, default, low."""
        name = self.default_queue
        return [name if p is Priority.DEFAULT else f"{name}:{p}" for p in ORDER]

    @property
    def running(self) -> str:
        return f"{self.default_queue}:running"

    @property
    def wake(self) -> str:
        return f"{self.default_queue}:wake"

    @property
    def schedules(self) -> str:
        return f"{self.default_queue}:schedules"

    @property
    def schedule_jobs(self) -> str:
        return f"{self.default_queue}:schedules:jobs"

    @property
    def cron(self) -> str:
        return f"{self.default_queue}:cron"

    @property
    def listener(self) -> str:
        return f"{self.default_queue}:listener"


@dataclass(slots=True, eq=False)
class Claim:
    """One job this worker holds, from its claim to its end."""

    id: bytes
    body: bytes | None
    tries: int  # charged so far
    token: bytes  # the whole claim: what fences its end
    number: int
    due: str
    stalled_count: int
    mark_ms: float | None  # an abort was asked for then
    job_id: str = ""
    fault: str = ""  # why it cannot be run: its keys are not what a client or a worker writes
    started: bool = False
    vacated: bool = False  # over, its slot another's; its end is being written
    ended: bool = False
    stop: str = ""  # "timeout" | "abort" | "lost" | "shutdown": why it was cancelled
    deadline: float = float("inf")  # loop time after which its lease is not renewed
    timeout_s: float = 0.0  # of its run
    held_at: float = 0.0  # loop time of the claim
    task: asyncio.Task[None] | None = None
    unique: str | None = None
    recorded: asyncio.Event | None = None

    @property
    def priority(self) -> Priority:
        return ORDER[self.number - 1]

    def end(self, kind: str, details: Mapping[str, Any]) -> End:
        return [kind, lua_text(self.id), lua_text(self.token), self.number, details]


@dataclass(frozen=True, slots=True)
class PollResult:
    """A turn's answer; times are Unix ms by the server's clock."""

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
    dropped: int = 0  # dead letters, to make room for newer ones

    @property
    def is_empty(self) -> bool:
        """Whether there was no job and no schedule, for nobody and at no time."""
        return self.size == 0 and self.next_due is None and not self.scheduled


@dataclass(frozen=True, slots=True)
class PollReply:
    """A reply of lua/poll.lua as it came, and what can be told without reading the claims."""

    data: list[Any]

    @property
    def more(self) -> bool:
        return bool(self.data[2])

    @property
    def rows(self) -> list[Any]:
        """What `read_claims` takes."""
        rows: list[Any] = self.data[9]
        return rows

    @property
    def claims(self) -> int:
        return len(self.rows) // CLAIM_FIELDS

    @property
    def has_rescued(self) -> bool:
        """Whether one of the claims lost a worker before."""
        return not all(token.endswith(b"|0") for token in self.rows[3::CLAIM_FIELDS])


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
    """Rows of `CLAIM_FIELDS`: id, body, tries, claim, mark of an abort."""
    return [_read_claim(rows, i) for i in range(0, len(rows), CLAIM_FIELDS)]


def _read_claim(rows: list[Any], at: int) -> Claim:
    id_, body, tries, token, mark = rows[at : at + CLAIM_FIELDS]
    _, number, due, stalled_count = token.decode(errors="replace").rsplit("|", 3)
    charged = 0 if tries is None else whole(tries, most=MOST_TRIES, fallback=-1)
    fault = _FAULTS[body] if isinstance(body, int) else ""
    if charged < 0:
        fault = fault or "retry:<id> is no number of tries"
    return Claim(
        id_,
        None if isinstance(body, int) else body,
        max(0, charged),
        token,
        int(number),
        due,
        int(stalled_count),
        None if mark is None else float(mark),
        id_.decode(errors="replace"),
        fault,
    )


def encode_ends(ends: Sequence[End]) -> bytes:
    """Ends for lua/poll.lua. One that cannot be encoded becomes a dead letter, its neighbors stay."""
    try:
        return _encode(ends)
    except Exception:  # noqa: BLE001  (a value that msgpack cannot hold, of whatever kind)
        return _encode([_encodable(end) for end in ends])


def _encodable(end: End) -> End:
    try:
        _encode(end)
    except Exception as exc:  # noqa: BLE001
        kind = type(exc).__name__
        details = {"reason": "undecodable", "error": f"its end cannot be encoded: {kind}"}
        return ["dead", *end[1:4], {**details, "tries": 0, "name": ""}]
    return end
