"""
Stores LLM requests in Redis.

A request waits in its group's list, belongs to a batch, or has its own job.
docs/states.md shows the states.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cache.connection.scripts import load
from worker.keys import LLM_USAGE_TTL_S
from worker.llm.answer_store import AnswerStore, split_request_id
from worker.llm.answers import CANCELED
from worker.llm.grouping import Group, LLMRequest
from worker.llm.options import FlushRules
from worker.llm.scripts import run_many
from worker.llm.stored_answers import encode_answer
from worker.llm.stored_groups import decode_group, encode_group
from worker.numbers import whole
from worker.queue.encoder import PreparedJob
from worker.queue.priority import Priority
from worker.queue.staging import LARGE, Staged, staged

_SUBMIT = load(__package__, "submit_llm", "..queue")
_SUBMIT_URGENT = load(__package__, "submit_llm_urgent", "..queue")
_CANCEL = load(__package__, "cancel_llm", "..queue")
_RETRY = load(__package__, "retry_llm", "..queue")
_UNANSWERED = load(__package__, "count_unanswered", "..queue")


@dataclass(frozen=True, slots=True)
class Callback:
    """The receiver of a request's end, and the body of the job that notifies it."""

    who: str
    body: bytes


NOBODY = Callback("", b"")


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """
    A request without an answer.

    `deadline_ms` is the earliest deadline of its callers, None if none has one;
    `expires_ms` the latest, None if one caller has none. Both are Unix milliseconds.
    """

    id: str
    group: Group
    body: bytes
    deadline_ms: int | None
    tokens: int
    urgent: bool
    expires_ms: int | None = None


class RequestStore(AnswerStore):
    """Stores requests and their answers through one client."""

    async def submit(
        self,
        requests: Sequence[tuple[str, LLMRequest]],
        *,
        flush_now: PreparedJob,
        flush_later: PreparedJob,
        rules: FlushRules,
        dedupe: bool,
        deadline_ms: int | None,
        callback: Callback = NOBODY,
    ) -> list[str]:
        """Store at most 500 requests of one group; returns the callers' ids."""
        keys, group = self.keys, requests[0][1].group
        group_id = group.id
        names = (keys.queue(Priority.DEFAULT), keys.wake)
        args: list[Any] = [
            keys.llm,
            group_id,
            encode_group(group),
            int(dedupe),
            "" if deadline_ms is None else deadline_ms,
            rules.max_requests,
            rules.max_bytes,
            rules.max_tokens,
            rules.max_age_ms,
            flush_now.id,
            flush_now.body,
            flush_later.id,
            flush_later.body,
            callback.who,
            callback.body,
        ]
        large: list[Staged] = []
        at: list[int] = []
        for request_id, request in requests:
            digest = request.digest(group_id) if dedupe else ""
            if len(request.body) > LARGE:
                large.append({"body": request.body})
                at.append(len(args) + 2)
            args += (request_id, digest, request.body, request.tokens)
        answered: list[bytes]
        if large:
            async with staged(self.client, keys, large) as sent:
                for place, name in zip(at, sent, strict=True):
                    args[place : place + 2] = name, f"-{args[place + 1]}"
                answered = await _SUBMIT.run(self.client, names, args)
        else:
            answered = await _SUBMIT.run(self.client, names, args)
        return [id_.decode() for id_ in answered]

    async def submit_urgent(
        self,
        request_id: str,
        request: LLMRequest,
        *,
        job: PreparedJob,
        job_keys: list[str],
        deadline_ms: int | None,
        callback: Callback = NOBODY,
    ) -> str:
        """Store a request with its own job."""
        keys = self.keys
        names = [keys.llm_request(request_id), keys.llm_result(request_id), *job_keys]
        names += [keys.llm_single, keys.llm_callback(request_id)]
        args = [
            request_id,
            request.body,
            request.group.id,
            encode_group(request.group),
            "" if deadline_ms is None else deadline_ms,
            request.tokens,
            job.id,
            job.body,
            callback.who,
            callback.body,
        ]
        large: list[Staged] = []
        if len(request.body) > LARGE:
            large, args[1] = [{"body": request.body}], b""
        async with staged(self.client, keys, large) as sent:
            await _SUBMIT_URGENT.run(self.client, [*names, *sent], args)
        return request_id

    async def read(self, request_id: str) -> StoredRequest | None:
        """The request; None when it is answered or unknown."""
        names = ("body", "deadline", "group", "tokens", "single", "expires")
        request_id, _ = split_request_id(request_id)
        row = await self.client.hmget(self.keys.llm_request(request_id), *names)
        if row[0] is None:
            return None
        return StoredRequest(
            id=request_id,
            group=decode_group(row[2]),
            body=row[0],
            deadline_ms=whole(row[1]) or None,
            tokens=whole(row[3]),
            urgent=row[4] == b"urgent",
            expires_ms=whole(row[5]) or None,
        )

    async def count_unanswered(self, request_id: str, *, run: int) -> int:
        """Count a call that succeeded without an answer, once a run; returns how many there were."""
        key = self.keys.llm_request(request_id)
        return int(await _UNANSWERED.run(self.client, [key], [run]))

    async def is_open(self, request_id: str) -> bool:
        """Whether the request is known and has no answer."""
        id_, _ = split_request_id(request_id)
        return bool(await self.client.exists(self.keys.llm_request(id_)))

    async def cancel(self, request_id: str, *, everybody: bool = False) -> tuple[int, str]:
        """
        Cancel a request for the caller with this id, or for all callers.

        Returns (code, batch id or ""); code 0: unknown, 1: other callers still wait, 2: it ended.
        """
        id_, suffix = split_request_id(request_id)
        args = [
            self.keys.llm,
            id_,
            encode_answer(CANCELED),
            int(self.retention.unread_s * 1000),
            LLM_USAGE_TTL_S * 1000,
            suffix,
            int(everybody),
        ]
        code, batch = await _CANCEL.run(self.client, [self.keys.llm_request(id_)], args)
        if code == 3:
            await self.send_callbacks()
        return min(2, code), batch.decode()

    async def retry(
        self, request_ids: Sequence[str], *, job: PreparedJob, job_keys: list[str]
    ) -> int:
        """Return failed requests to the waiting list; returns how many."""
        keys = self.keys
        calls = [
            (
                [keys.llm_failed(id_), keys.llm_request(id_), keys.llm_result(id_), *job_keys],
                [keys.llm, id_, job.id, job.body],
            )
            for id_ in request_ids
        ]
        return sum(await run_many(self.client, _RETRY, calls))
