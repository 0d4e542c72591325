"""
LLM requests and their batches in Redis.

A request waits in its group's list until a flush seals it into a batch; its
answer is stored once, and a message on one channel wakes whoever waits for it,
in any process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from cache import codec
from cache.keys import LLM_BATCH_TTL_S, QueueKeys
from cache.scripts import load
from worker.policy.batch import Answer, Group, LLMRequest
from worker.policy.priority import Priority

_SUBMIT = load("worker.effects", "submit_llm")
_SUBMIT_URGENT = load("worker.effects", "submit_llm_urgent")
_SEAL = load("worker.effects", "seal_batch")
_ANSWER = load("worker.effects", "answer_llm")
_MOVE = load("worker.effects", "move_batch")
# A slice of a batch read at a time, so that a large one is never in memory whole.
_PAGE = 500
# LPOP and unpack of one call of seal_batch.lua.
SEAL_LIMIT = 5000


class BatchState(StrEnum):
    """sealed -> submitting -> submitted -> done | failed (docs/states.md)."""

    SEALED = "sealed"
    SUBMITTING = "submitting"
    SUBMITTED = "submitted"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Batch:
    """A sealed batch; `provider_id` is the provider's name for it once submitted."""

    id: str
    state: BatchState
    group: Group
    size: int
    provider_id: str


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A request that is not answered yet. `deadline_ms` is Unix milliseconds or None."""

    id: str
    body: bytes
    deadline_ms: int | None


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """A job that a script may store: its id and encoded body."""

    id: str
    body: bytes


class BatchStore:
    """Takes requests in, seals batches, keeps answers, through one client."""

    def __init__(self, client: Any, keys: QueueKeys, *, result_ttl_s: float) -> None:
        self.client = client
        self.keys = keys
        self.result_ttl_s = result_ttl_s

    async def submit(
        self,
        request_id: str,
        request: LLMRequest,
        *,
        flush_now: PreparedJob,
        flush_later: PreparedJob,
        limit: int,
        max_age_ms: int,
        dedupe: bool,
        deadline_ms: int | None,
    ) -> str:
        """Store a request under its group; returns the id that will be answered."""
        keys, group = self.keys, request.group
        names = [
            keys.llm_request(request_id),
            keys.llm_dedupe(request.digest),
            keys.llm_pending(group.id),
            keys.llm_groups,
            keys.wake,
            keys.queue(Priority.DEFAULT),
            keys.job(flush_now.id),
            keys.result(flush_now.id),
            keys.job(flush_later.id),
            keys.result(flush_later.id),
        ]
        args = [
            request_id,
            request.body,
            group.id,
            _encode_group(group),
            int(dedupe),
            limit,
            max_age_ms,
            flush_now.id,
            flush_now.body,
            flush_later.id,
            flush_later.body,
            "" if deadline_ms is None else deadline_ms,
        ]
        answered: bytes = await _SUBMIT.run(self.client, names, args)
        return answered.decode()

    async def submit_urgent(
        self,
        request_id: str,
        request: LLMRequest,
        *,
        job: PreparedJob,
        job_keys: list[str],
        deadline_ms: int | None,
    ) -> str:
        """Store a request with a job of its own."""
        names = [self.keys.llm_request(request_id), *job_keys]
        deadline = "" if deadline_ms is None else deadline_ms
        args = [request_id, request.body, _encode_group(request.group), deadline, job.id, job.body]
        await _SUBMIT_URGENT.run(self.client, names, args)
        return request_id

    async def groups(self) -> list[Group]:
        """The groups in which requests wait."""
        rows = await self.client.hgetall(self.keys.llm_groups)
        return [_decode_group(data) for data in rows.values()]

    async def pending(self, group: Group) -> int:
        return int(await self.client.llen(self.keys.llm_pending(group.id)))

    async def seal(
        self,
        group: Group,
        batch_id: str,
        *,
        limit: int,
        least: int,
        job: PreparedJob,
        job_keys: list[str],
    ) -> int:
        """Move up to `limit` waiting requests into a new batch, if `least` wait; returns how many."""
        keys = self.keys
        names = [
            keys.llm_pending(group.id),
            keys.llm_groups,
            keys.llm_batch(batch_id),
            keys.llm_items(batch_id),
            *job_keys,
        ]
        args = [group.id, _encode_group(group), min(limit, SEAL_LIMIT), job.id, job.body, least]
        return int(await _SEAL.run(self.client, names, args))

    async def batch(self, batch_id: str) -> Batch | None:
        row = await self.client.hgetall(self.keys.llm_batch(batch_id))
        if not row:
            return None
        return Batch(
            id=batch_id,
            state=BatchState(row[b"state"].decode()),
            group=_decode_group(row[b"group"]),
            size=int(row[b"items"]),
            provider_id=row.get(b"provider_id", b"").decode(),
        )

    async def move(self, batch: Batch, to: BatchState, **fields: str) -> bool:
        """One transition; False when another run has moved the batch already."""
        ended = to in {BatchState.DONE, BatchState.FAILED}
        flat = [part for pair in fields.items() for part in pair]
        ttl = LLM_BATCH_TTL_S * 1000 if ended else ""
        names = [self.keys.llm_batch(batch.id), self.keys.llm_items(batch.id)]
        # HSET wants at least one pair behind the state's.
        args = [batch.state.value, to.value, ttl, *(flat or ["state", to.value])]
        return bool(await _MOVE.run(self.client, names, args))

    async def unanswered(self, batch_id: str) -> AsyncIterator[list[StoredRequest]]:
        """The requests of a batch that have no answer yet, a page at a time."""
        start = 0
        while ids := await self.client.lrange(
            self.keys.llm_items(batch_id), start, start + _PAGE - 1
        ):
            async with self.client.pipeline(transaction=False) as pipe:
                for request_id in ids:
                    pipe.hmget(self.keys.llm_request(request_id.decode()), "body", "deadline")
                rows = await pipe.execute()
            yield [
                StoredRequest(request_id.decode(), body, int(deadline) if deadline else None)
                for request_id, (body, deadline) in zip(ids, rows, strict=True)
                if body is not None
            ]
            start += _PAGE

    async def request(self, request_id: str) -> tuple[StoredRequest, Group] | None:
        """An urgent request and its group; None once it is answered."""
        names = ("body", "deadline", "group")
        row = await self.client.hmget(self.keys.llm_request(request_id), *names)
        if row[0] is None:
            return None
        deadline = int(row[1]) if row[1] else None
        return StoredRequest(request_id, row[0], deadline), _decode_group(row[2])

    async def answer(self, request_id: str, answer: Answer) -> bool:
        """Store an answer and wake its waiters; False when there is one already."""
        keys = self.keys
        data = codec.encode([answer.body, answer.kind, answer.message])
        names = [keys.llm_request(request_id), keys.llm_result(request_id)]
        args = [data, int(self.result_ttl_s * 1000), request_id, keys.llm_answered]
        return bool(await _ANSWER.run(self.client, names, args))

    async def read_answer(self, request_id: str) -> Answer | None:
        data = await self.client.get(self.keys.llm_result(request_id))
        return None if data is None else Answer(*codec.decode(data))

    async def is_open(self, request_id: str) -> bool:
        """Whether the request is known and not answered."""
        return bool(await self.client.exists(self.keys.llm_request(request_id)))


def _encode_group(group: Group) -> bytes:
    return codec.encode([group.provider, group.endpoint, group.model])


def _decode_group(data: bytes) -> Group:
    return Group(*codec.decode(data))
