"""
Takes requests out of a batch: answers them, puts them back, or sends them as direct calls.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from cache.logs import get_logger
from worker.llm.answers import (
    LATE,
    MALFORMED,
    MISSING,
    Answer,
    Fate,
    checked,
    decide_fate,
    unreadable,
)
from worker.llm.batches import Batch
from worker.llm.context import LLMContext
from worker.llm.prepared import FLUSH_LLM_GROUP
from worker.llm.providers import Provider, RemoteBatch
from worker.llm.providers.protocol import split_custom_id
from worker.queue.encoder import PreparedJob
from worker.queue.priority import Priority

log = get_logger(__name__)

# Results stored in one round trip, and so held in memory at a time: their number and bytes.
_CHUNK, _CHUNK_BYTES = 100, 262_144
# Kept of results that name no request.
_MOST_UNNAMED = 65_536


class NotOurs(Exception):
    """The results belong to another batch."""


class Items:
    """The requests of one batch, for one run."""

    def __init__(self, context: LLMContext, batch: Batch) -> None:
        self.context = context
        self.batch = batch
        self.store = context.batches
        self.requests = context.requests
        self.unnamed = bytearray()  # unreadable results that name no request

    async def take_results(self, provider: Provider, remote: RemoteBatch) -> int:
        """
        Store the provider's results while they stream; returns how many lines were this batch's.

        Raises:
            NotOurs: the batch was adopted, and its custom ids name another one.
        """
        lines, size = 0, 0
        chunk: list[tuple[str, Answer]] = []
        self.unnamed, unnamed = bytearray(), 0
        async for custom_id, answer in provider.results(remote):
            request_id, batch_id = split_custom_id(custom_id)
            if not custom_id and answer.kind == MALFORMED:
                self._keep_unnamed(answer)
                unnamed += 1
                continue
            if batch_id != self.batch.id:
                if self.batch.fields.get("adopted"):
                    raise NotOurs
                continue
            lines, size = lines + 1, size + answer.size
            endpoint = self.batch.group.endpoint
            chunk.append((request_id, checked(answer, endpoint, is_row=True)))
            if len(chunk) >= _CHUNK or size >= _CHUNK_BYTES:
                await self._settle(chunk)
                chunk, size = [], 0
                self.context.reached("batch.fetching")
        await self._settle(chunk)
        if unnamed:  # one line in the log, whatever came: an error page has hundreds
            log.warning("batch.result_unreadable", batch_id=self.batch.id, results=unnamed)
        return lines

    def _keep_unnamed(self, answer: Answer) -> None:
        came = answer.text.pieces[0] if answer.text is not None else answer.body or b""
        if len(self.unnamed) < _MOST_UNNAMED:
            self.unnamed += came[:_MOST_UNNAMED] + b"\n"

    async def _settle(self, answers: Sequence[tuple[str, Answer]]) -> None:
        """Answer each request, put it back, or send it as a direct call."""
        if not answers:
            return
        # Only retryable errors, which are rare, need a read of the request.
        doubtful = {id_: answer for id_, answer in answers if answer.retryable}
        final = [(id_, answer) for id_, answer in answers if id_ not in doubtful]
        known = await self.store.open_items(self.batch.id, list(doubtful)) if doubtful else {}
        back: list[str] = []
        single: list[str] = []
        for id_, (tries, deadline_ms) in known.items():
            fate = decide_fate(
                doubtful[id_],
                tries=tries,
                max_tries=self.context.options.item_max_tries,
                left_s=None if deadline_ms is None else (deadline_ms - self._now_ms()) / 1000,
                margin_s=self.context.options.deadline_margin_s,
            )
            if fate is Fate.ANSWER:
                final.append((id_, doubtful[id_]))
            else:
                (back if fate is Fate.PUT_BACK else single).append(id_)
        await self.requests.answer_many(final, line_of=self.batch.id, run_s=self._run_s())
        await self._put_back(back)
        await self._send_directly(single, urgent=True)

    async def miss_rest(self) -> None:
        """
        Treat requests without a result line as never seen by the provider.

        If unreadable results name no request, they may be theirs: then nothing is bought again.
        """
        if self.unnamed:
            message = "the provider's results are not JSON, and no other one is for this request"
            await self.answer_rest(unreadable(message, bytes(self.unnamed)))
            return
        missing = await self.store.outstanding(self.batch.id)
        log.warning("batch.items_missing", batch_id=self.batch.id, requests=missing)
        await self.settle_rest(MISSING)

    async def settle_rest(self, answer: Answer) -> None:
        """Give open requests this answer, or send them again if the answer is retryable."""
        async for page in self.store.unanswered(self.batch.id):
            await self._settle([(request.id, answer) for request in page])

    async def answer_rest(self, answer: Answer) -> None:
        async for page in self.store.unanswered(self.batch.id):
            await self.requests.answer_many([(request.id, answer) for request in page])

    async def rescue(self) -> int | None:
        """
        Fail requests past their deadline; send those close to it as direct calls.

        Returns the next deadline of the others, Unix ms.
        """
        now_ms, margin_ms = self._now_ms(), self.context.options.deadline_margin_s * 1000
        next_ms: int | None = None
        async for page in self.store.unanswered(self.batch.id):
            dated = [(r.id, r.deadline_ms) for r in page if r.deadline_ms is not None]
            # A shared request expires with the latest deadline of its callers.
            late = {r.id for r in page if r.expires_ms is not None and r.expires_ms <= now_ms}
            near = [
                id_ for id_, due_ms in dated if due_ms <= now_ms + margin_ms and id_ not in late
            ]
            await self.requests.answer_many([(id_, LATE) for id_ in late])
            await self._send_directly(near, urgent=True)
            rest = [due_ms for _, due_ms in dated if due_ms > now_ms + margin_ms]
            next_ms = min([*rest, *([] if next_ms is None else [next_ms])], default=None)
        await self.store.note(self.batch.id, deadline="" if next_ms is None else next_ms)
        return next_ms

    async def detach_all(self) -> int:
        """Send every open request as a direct call; returns how many."""
        moved = 0
        async for page in self.store.unanswered(self.batch.id):
            moved += await self._send_directly([request.id for request in page], urgent=False)
        return moved

    async def _put_back(self, ids: Sequence[str]) -> None:
        if not ids:
            return
        group = self.batch.group
        # The job id is new each time: an earlier flush of the same id may be just ending.
        job = self.context.prepared.flush(f"llm:again:{uuid.uuid4().hex}", group)
        keys = self._job_keys(job, Priority.DEFAULT)
        delay_ms = self.context.options.rules[group.provider].max_age_ms
        rows = [(id_, job, keys) for id_ in ids]
        moved = await self.store.detach(self.batch.id, rows, mode="wait", delay_ms=delay_ms)
        # A second flush, because the first may run before the last request is back.
        row = (group.provider, group.endpoint, group.model)
        await self.context.jobs.enqueue(FLUSH_LLM_GROUP, *row, delay_s=delay_ms / 1000)
        log.info("batch.items_put_back", batch_id=self.batch.id, requests=moved)

    async def _send_directly(self, ids: Sequence[str], *, urgent: bool) -> int:
        if not ids:
            return 0
        priority = Priority.HIGH if urgent else Priority.DEFAULT
        rows = []
        for id_ in ids:
            job = self.context.prepared.single(id_)
            rows.append((id_, job, self._job_keys(job, priority)))
        return await self.store.detach(self.batch.id, rows, mode="urgent" if urgent else "single")

    def _job_keys(self, job: PreparedJob, priority: Priority) -> list[str]:
        return self.context.keys.job_keys(job.id, priority)

    def _run_s(self) -> float | None:
        """How long ago the batch was sent."""
        sent_ms = self.batch.submitting_ms
        return (self._now_ms() - sent_ms) / 1000 if sent_ms else None

    def _now_ms(self) -> int:
        return int(self.context.now().timestamp() * 1000)
