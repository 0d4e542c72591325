"""
Stores the answers of LLM requests and reads them.

An answer is stored once, and a message on one channel wakes the callers that wait for it in any
process.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from itertools import chain
from typing import Any

from cache.connection.scripts import load
from cache.logs import get_logger
from worker.keys import LLM_PART_TTL_S, LLM_USAGE_TTL_S, QueueKeys
from worker.llm.answers import CANCELED, MALFORMED, Answer
from worker.llm.frames import frame
from worker.llm.options import Retention
from worker.llm.scripts import replies_of, run_many
from worker.llm.stored_answers import OWN, SHARED, decode_answer, long_head, stored_form
from worker.llm.usage import read_usage
from worker.queue.priority import Priority
from worker.queue.series import number_of_outcome
from worker.queue.staging import LARGE, steps

log = get_logger(__name__)

_ANSWER = load(__package__, "answer_llm", "..queue")
_CALLBACKS = load(__package__, "callbacks_llm", "..queue")

# Jobs that one call of callbacks_llm.lua enqueues: it occupies the server for about 1 ms.
_CALLBACKS_A_STEP = 100
# A longer one is decoded in a thread, and the event loop can run meanwhile.
_THREAD_BYTES = 1_048_576
# Answers that one call of answer_llm.lua stores: it occupies the server for about 0.5 ms.
_ANSWERS_A_STEP = 16


def split_request_id(request_id: str) -> tuple[str, str]:
    """Split a caller's id into the request's id and the caller's suffix ("" for the first caller)."""
    id_, _, suffix = request_id.partition(".")
    return id_, suffix


class AnswerStore:
    """Stores answers through one client. `most_jobs` limits the queue; 0 is no limit."""

    def __init__(
        self, client: Any, keys: QueueKeys, retention: Retention, *, most_jobs: int = 0
    ) -> None:
        self.client = client
        self.keys = keys
        self.retention = retention
        self.most_jobs = most_jobs

    async def send_callbacks(self) -> bool:
        """
        Enqueue the callbacks of ended requests. Returns False while the queue is full.

        The next end of a request, or the rescuer, continues.
        """
        names = [self.keys.llm_callbacks, *(self.keys.queue(priority) for priority in Priority)]
        args = [self.keys.llm, self.most_jobs, _CALLBACKS_A_STEP]
        code = 1
        while code == 1:
            # A key of another type is logged and counts as a full queue.
            (code,) = await run_many(self.client, _CALLBACKS, [(names, args)], refused=-1)
        return code == 0

    async def answer(self, request_id: str, answer: Answer, *, run_s: float | None = None) -> bool:
        """Store an answer and wake its callers; returns False when one is stored already."""
        return bool(await self.answer_many([(request_id, answer)], run_s=run_s))

    async def answer_many(
        self,
        answers: Sequence[tuple[str, Answer]],
        *,
        line_of: str = "",
        run_s: float | None = None,
    ) -> int:
        """
        Store answers in one round trip; returns how many are new. Long ones are sent before, in pieces.

        `line_of`: the batch whose results they are; it can answer only requests that it contained.
        `run_s`: from the sending to the answers, for the history; None: they were not sent.
        """
        rows = [await self._row(id_, answer) for id_, answer in answers]
        terms = [
            self.keys.llm,
            int(self.retention.unread_s * 1000),
            int(self.retention.equal_s * 1000),
            LLM_USAGE_TTL_S * 1000,
            line_of,
            -1 if run_s is None else max(0, round(run_s * 1000)),
        ]
        calls = [
            ([self.keys.llm_request(rows[start][0])], [*terms, *chain(*rows[start:stop])])
            for start, stop in steps([len(row[1]) for row in rows], _ANSWERS_A_STEP)
        ]
        codes = list(chain(*await replies_of(self.client, _ANSWER, calls, refused=[-1])))
        if -1 in codes:
            log.error("llm.keys_unreadable", error=f"of {codes.count(-1)} answered requests")
        if 2 in codes:
            await self.send_callbacks()
        return sum(code > 0 for code in codes)

    async def _send_text(self, answer: Answer) -> str:
        """
        Send the text of a long answer; returns the key that holds it, "" if it has none.

        Each piece has its place, so a command whose reply was lost may be sent again.
        """
        if answer.text is None:
            return ""
        key, head = self.keys.llm_part(uuid.uuid4().hex), long_head(answer)
        await self.client.set(key, head, ex=LLM_PART_TTL_S)
        at = len(head)
        for piece in answer.text.pieces:
            # Compressing releases the interpreter's lock.
            data = await asyncio.to_thread(frame, piece)
            await self.client.setrange(key, at, data)
            at += len(data)
        return key

    async def _send_data(self, data: bytes) -> str:
        """Send a large encoded answer; returns the key that holds it."""
        key = self.keys.llm_part(uuid.uuid4().hex)
        await self.client.set(key, OWN + data, ex=LLM_PART_TTL_S)
        return key

    async def _row(self, request_id: str, answer: Answer) -> tuple[Any, ...]:
        """What answer_llm.lua takes of each answer. A long one is sent before."""
        part = await self._send_text(answer)
        data, ok = (b"", answer.ok) if answer.text is not None else stored_form(answer)
        if len(data) > LARGE:
            part, data = await self._send_data(data), b""
        usage = read_usage(answer.body if ok else None)
        used = (usage.input, usage.output, usage.cached, usage.reasoning)
        return request_id, data, int(ok), _outcome(answer), *used, part

    async def read_answer(self, request_id: str) -> Answer | None:
        """
        Return a request's answer; the first read of an unshared answer shortens its lifetime.

        What came as a malformed answer stays as long as it would unread, for the operator.
        """
        key, keep = self.keys.llm_result(split_request_id(request_id)[0]), self.retention
        data: bytes | None = await self.client.get(key)
        if data is None:
            return None
        answer = await _decoded(data)
        read_s = max(keep.read_s, keep.equal_s)
        is_kept = data.startswith(SHARED) or answer.kind == MALFORMED
        if read_s < keep.unread_s and not is_kept:
            await self.client.pexpire(key, int(read_s * 1000), lt=True)
        return answer

    async def peek_answer(self, request_id: str) -> Answer | None:
        """Return a request's answer without changing its lifetime."""
        id_, _ = split_request_id(request_id)
        data = await self.client.get(self.keys.llm_result(id_))
        return None if data is None else await _decoded(data)


def _outcome(answer: Answer) -> int:
    if answer.ok:
        return number_of_outcome("completed")
    return number_of_outcome("aborted" if answer.kind == CANCELED.kind else "dead")


async def _decoded(data: bytes) -> Answer:
    if len(data) < _THREAD_BYTES:
        return decode_answer(data)
    return await asyncio.to_thread(decode_answer, data)
