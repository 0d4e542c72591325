"""
The LLM half of the client: hand in requests, wait for answers, watch and cancel batches.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from cache.keys import QueueKeys
from worker.effects.batches import Batch, BatchStore, created_at
from worker.effects.handle import Job, reach
from worker.effects.llm_requests import FlushRules, PreparedJob, RequestStore, Retention
from worker.effects.notices import Notices
from worker.errors import NotFound, RequestFailed, ResultTimeout
from worker.options import QueueOptions
from worker.policy import checks
from worker.policy.batch import LIMITS, Group, LLMRequest, check_endpoint, check_request
from worker.policy.priority import Priority
from worker.producer import Limits, Producer

FLUSH_LLM_GROUP = "flush_llm_group"
FLUSH_LLM_BATCHES = "flush_llm_batches"
RUN_LLM_BATCH = "run_llm_batch"
RUN_LLM_REQUEST = "run_llm_request"

# Answers are told on a channel; this look is for a message that was lost.
_NOTICE_POLL_S = 1.0
# Requests of one script call: a longer one would keep the server from its other clients.
_CHUNK = 250
_USAGE = ("input", "output", "cached", "reasoning")


class LLMClient(Producer):
    """Hands in LLM requests through one Redis client. `JobQueue` is one."""

    def __init__(self, client: Any, keys: QueueKeys, options: QueueOptions) -> None:
        limits = Limits(options.max_job_bytes, options.max_length, options.max_memory_share)
        super().__init__(client, keys, limits)
        self.options = options
        retention = Retention(
            options.llm_result_ttl_s, options.llm_read_result_ttl_s, options.llm_cache_ttl_s
        )
        self.batches = BatchStore(client, self.keys)
        self.requests = RequestStore(client, self.keys, retention)
        self._answers = Notices(client, self.keys.llm_answered)

    async def submit_llm_request(
        self,
        body: Mapping[str, Any],
        *,
        provider: str,
        endpoint: str,
        urgent: bool = False,
        deadline: datetime | None = None,
        dedupe: bool = True,
    ) -> str:
        """
        Hand in one LLM request; returns the id to give to `llm_result`.

        It waits for others of its provider, endpoint and model, and goes with
        them in a batch. `urgent`, or a `deadline` (aware) that a batch would
        likely miss, sends it by itself at once; one whose deadline comes near
        while its batch is under way is sent by itself then. A request whose
        deadline passes before it is sent ends with the error
        `deadline_exceeded`. With `dedupe` an equal request that is still
        unanswered is shared: same id, same answer.

        Raises:
            UnknownProvider, InvalidArgument, PayloadTooLarge.
            QueueMemoryFull: the server is over LETTA_QUEUE_MAX_MEMORY_SHARE.
        """
        request = self._checked(body, provider, endpoint)
        deadline_ms = None if deadline is None else checks.unix_ms("deadline", deadline)
        await reach(self._memory.admit())
        if urgent or self._is_near(deadline):
            return await self._submit_urgent(request, deadline_ms)
        (id_,) = await self._submit([request], deadline_ms, dedupe=dedupe)
        return id_

    async def submit_many(
        self,
        bodies: Iterable[Mapping[str, Any]],
        *,
        provider: str,
        endpoint: str,
        deadline: datetime | None = None,
        dedupe: bool = True,
    ) -> list[str]:
        """
        Hand in many LLM requests for batches; returns their ids in order.

        All are checked before the first is stored, then stored some hundreds at
        a time: when that fails half way, what was stored is answered all the
        same. Otherwise as `submit_llm_request`.
        """
        requests = [self._checked(body, provider, endpoint) for body in bodies]
        deadline_ms = None if deadline is None else checks.unix_ms("deadline", deadline)
        if self._is_near(deadline):
            await reach(self._memory.admit())
            return [await self._submit_urgent(request, deadline_ms) for request in requests]
        by_group: dict[Group, list[int]] = {}
        for number, request in enumerate(requests):
            by_group.setdefault(request.group, []).append(number)
        ids = [""] * len(requests)
        for numbers in by_group.values():
            for start in range(0, len(numbers), _CHUNK):
                chunk = numbers[start : start + _CHUNK]
                await reach(self._memory.admit())
                stored = await self._submit(
                    [requests[number] for number in chunk], deadline_ms, dedupe=dedupe
                )
                for number, id_ in zip(chunk, stored, strict=True):
                    ids[number] = id_
        return ids

    async def llm_result(self, request_id: str, *, timeout_s: float | None = None) -> Any:
        """
        Wait for one request's answer: the provider's response body.

        Raises:
            RequestFailed: this request ended with an error of its own.
            ResultTimeout: not answered within `timeout_s`; ask again later.
            NotFound: unknown, or its answer is no longer kept (LETTA_LLM_RESULT_TTL_S,
                LETTA_LLM_READ_RESULT_TTL_S).
        """
        requests = self.requests
        try:
            async with asyncio.timeout(timeout_s), self._answers.watch(request_id) as told:
                while True:
                    told.clear()
                    answer = await reach(requests.read_answer(request_id))
                    if answer is not None:
                        break
                    if not await reach(requests.is_open(request_id)):
                        answer = await reach(requests.read_answer(request_id))
                        if answer is None:
                            raise NotFound(f"no request {request_id!r}, or its answer has expired")
                        break
                    await _wait_for(told, _NOTICE_POLL_S)
        except TimeoutError:
            raise ResultTimeout(f"{request_id!r} is not answered after {timeout_s} s") from None
        if not answer.ok:
            raise RequestFailed(answer.kind, answer.message)
        return answer.body

    async def flush_llm_batches(self) -> Job:
        """Send every waiting request now; the job's result is how many batches were made."""
        return await self.enqueue(FLUSH_LLM_BATCHES, priority=Priority.HIGH)

    # -- cancel and retry ------------------------------------------------------

    async def cancel_llm_request(self, request_id: str) -> bool:
        """
        Give up a request: it ends with the error `canceled` unless others wait for it too.

        Its batch is cancelled at the provider when nobody waits for any of it.
        False when it is answered already, or unknown.
        """
        code, batch_id = await reach(self.requests.cancel(request_id, uuid.uuid4().hex))
        if batch_id and not await reach(self.batches.outstanding(batch_id)):
            await self._cancel_at_provider(batch_id)
        return code > 0

    async def cancel_llm_batch(self, batch_id: str) -> bool:
        """
        Give up what a batch has not answered; what the provider has done already is kept.

        False when it has ended.

        Raises:
            NotFound: no such batch.
        """
        batch = await self._batch(batch_id)
        if batch.state.is_end:
            return False
        await self._cancel_at_provider(batch_id)
        return True

    async def cancel_llm_group(self, provider: str, endpoint: str, model: str) -> int:
        """
        Give up a group: its waiting requests and its batches; returns how many of both.

        Raises:
            UnknownProvider, InvalidArgument.
        """
        group = Group(provider, check_endpoint(provider, endpoint), model)
        ended, call = 0, uuid.uuid4().hex
        while ids := await reach(self.batches.waiting_ids(group)):
            for id_ in ids:
                code, _ = await reach(self.requests.cancel(id_, call, everybody=True))
                ended += code == 2
        for batch in await reach(self.batches.listed(10_000)):
            if batch.group == group and not batch.state.is_end:
                await self._cancel_at_provider(batch.id)
                ended += 1
        return ended

    async def retry_llm_batch(self, batch_id: str) -> int:
        """
        Let a batch's requests that ended with an error wait again; returns how many.

        A batch that has not ended is looked at now.

        Raises:
            NotFound: no such batch.
        """
        batch = await self._batch(batch_id)
        if not batch.state.is_end:
            await self._run_now(batch_id)
            return 0
        group, retried = batch.group, 0
        row = [group.provider, group.endpoint, group.model]
        job = self.prepared(f"llm:retry:{batch_id}", FLUSH_LLM_GROUP, *row)
        keys = self.jobs.job_keys(job.id, Priority.DEFAULT)
        async for ids in self.batches.ids(batch_id):
            retried += await reach(self.requests.retry(ids, job=job, job_keys=keys))
        return retried

    # -- what is going on ------------------------------------------------------

    async def llm_batch(self, batch_id: str) -> dict[str, Any]:
        """
        A batch: state, counts of its requests, usage in tokens.

        Raises:
            NotFound: no such batch, or it ended over 7 days ago.
        """
        return await self._shown(await self._batch(batch_id))

    async def llm_batches(self, *, limit: int = 50) -> list[dict[str, Any]]:
        """The newest batches, newest first, each as `llm_batch` shows it."""
        return [await self._shown(batch) for batch in await reach(self.batches.listed(limit))]

    async def llm_groups(self) -> list[dict[str, Any]]:
        """The groups in which requests wait: how many, their bytes and tokens, usage so far."""
        return [
            {
                "provider": group.provider,
                "endpoint": group.endpoint,
                "model": group.model,
                "waiting": await reach(self.batches.waiting(group)),
                "usage": await reach(self.batches.usage(group)),
            }
            for group in await reach(self.batches.groups())
        ]

    # -- inside ----------------------------------------------------------------

    def _checked(self, body: Mapping[str, Any], provider: str, endpoint: str) -> LLMRequest:
        limit = self.options.max_llm_bytes
        return check_request(body, provider=provider, endpoint=endpoint, max_bytes=limit)

    async def _submit(
        self, requests: list[LLMRequest], deadline_ms: int | None, *, dedupe: bool
    ) -> list[str]:
        pairs = [(f"req_{uuid.uuid4().hex}", request) for request in requests]
        first, group = pairs[0][0], requests[0].group
        row = [group.provider, group.endpoint, group.model]
        return await reach(
            self.requests.submit(
                pairs,
                # Named after the request that would complete the batch: a call
                # that is sent again starts no second flush.
                flush_now=self.prepared(f"llm:full:{first}", FLUSH_LLM_GROUP, *row, full_only=True),
                flush_later=self.prepared(f"llm:age:{first}", FLUSH_LLM_GROUP, *row),
                rules=flush_rules(self.options, group.provider),
                dedupe=dedupe,
                deadline_ms=deadline_ms,
            )
        )

    async def _submit_urgent(self, request: LLMRequest, deadline_ms: int | None) -> str:
        request_id = f"req_{uuid.uuid4().hex}"
        job = self.prepared(f"llm:urgent:{request_id}", RUN_LLM_REQUEST, request_id)
        return await reach(
            self.requests.submit_urgent(
                request_id,
                request,
                job=job,
                job_keys=self.jobs.job_keys(job.id, Priority.HIGH),
                deadline_ms=deadline_ms,
            )
        )

    def _is_near(self, deadline: datetime | None) -> bool:
        if deadline is None:
            return False
        # A batch takes its gathering time and then the provider's, which is
        # never shorter than that.
        left_s = deadline.timestamp() - datetime.now(UTC).timestamp()
        gathering_s = 2 * self.options.llm_batch_max_age_s
        return left_s < max(gathering_s, self.options.llm_deadline_margin_s)

    def batch_job(self, batch_id: str) -> PreparedJob:
        """The job that carries a batch on."""
        return self.prepared(f"llm:batch:{batch_id}", RUN_LLM_BATCH, batch_id)

    def prepared(self, job_id: str, name: str, *args: Any, **kwargs: Any) -> PreparedJob:
        """A job for a script to store."""
        return PreparedJob(job_id, self._body(name, *args, **kwargs))

    async def _batch(self, batch_id: str) -> Batch:
        found = await reach(self.batches.read(batch_id))
        if found is None:
            raise NotFound(f"no batch {batch_id!r}, or it ended over 7 days ago")
        return found

    async def _cancel_at_provider(self, batch_id: str) -> None:
        await reach(self.batches.ask_to_cancel(batch_id))
        await self._run_now(batch_id)

    async def _run_now(self, batch_id: str) -> None:
        job = self.batch_job(batch_id)
        keys = self.jobs.job_keys(job.id, Priority.DEFAULT)
        await reach(self.batches.hasten(job, keys))

    async def _shown(self, batch: Batch) -> dict[str, Any]:
        outstanding = 0 if batch.state.is_end else await reach(self.batches.outstanding(batch.id))
        usage = {name: batch.number(name) for name in _USAGE}
        return {
            "id": batch.id,
            "state": batch.state.value,
            "provider": batch.group.provider,
            "endpoint": batch.group.endpoint,
            "model": batch.group.model,
            "provider_id": batch.provider_id or None,
            "created_at": created_at(batch).isoformat(),
            "requests": batch.size,
            "succeeded": batch.number("succeeded"),
            "failed": batch.number("failed"),
            "moved": batch.number("moved"),
            "outstanding": outstanding,
            "bytes": batch.number("bytes"),
            "estimated_tokens": batch.number("tokens"),
            "usage": usage,
            # What the same tokens would be by themselves, in whole-price tokens.
            "billed_tokens": round(
                (usage["input"] + usage["output"]) * self.options.llm_batch_price_factor
            ),
            "ambiguous": batch.number("ambiguous"),
            "error": batch.fields.get("error") or None,
        }


def flush_rules(options: QueueOptions, provider: str) -> FlushRules:
    """When a group is full: what the operator set, within what the provider takes."""
    limits = LIMITS[provider]
    return FlushRules(
        max_requests=min(options.llm_batch_max_requests, limits.requests),
        max_bytes=min(options.llm_batch_max_bytes, limits.bytes * 9 // 10),
        max_tokens=options.llm_batch_max_tokens,
        max_age_ms=int(options.llm_batch_max_age_s * 1000),
    )


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
