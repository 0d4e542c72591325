"""
Submits LLM requests, waits for their answers and cancels them.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from worker.errors import NotFound, RequestFailed, ResultTimeout
from worker.keys import QueueKeys
from worker.llm.answer_subscriber import AnswerSubscriber
from worker.llm.batch_client import Batches, require_names
from worker.llm.grouping import LIMITS, Group, LLMRequest, check_request
from worker.llm.options import LLMOptions, flush_rules
from worker.llm.prepared import FLUSH_LLM_BATCHES, PreparedJobs
from worker.llm.requests import NOBODY, Callback, RequestStore, split_request_id
from worker.queue import arguments
from worker.queue.admission import MemoryGuard
from worker.queue.client import Jobs
from worker.queue.encoder import PreparedJob
from worker.queue.job import Job, reach
from worker.queue.priority import Priority

# A message on the channel announces an answer; this poll covers a lost message.
_ANSWER_POLL_S = 1.0
# Requests of one script call. More would block the server's other clients.
_CHUNK = 125


class LLMRequests:
    """
    `queue.llm`; its batches are `queue.llm.batches`.

    Every method raises:
        QueueUnavailable: the server cannot be reached; nothing is known to be stored.
    """

    def __init__(
        self,
        keys: QueueKeys,
        requests: RequestStore,
        batches: Batches,
        answers: AnswerSubscriber,
        *,
        jobs: Jobs,
        prepared: PreparedJobs,
        memory: MemoryGuard,
        options: LLMOptions,
    ) -> None:
        self.batches = batches
        self._keys = keys
        self._requests = requests
        self._answers = answers
        self._jobs = jobs
        self._prepared = prepared
        self._memory = memory
        self._options = options
        self._rules = {provider: flush_rules(options, provider) for provider in LIMITS}
        self._flushes: tuple[Group | None, float, bytes, bytes] = (None, 0.0, b"", b"")

    async def submit(
        self,
        body: Mapping[str, Any],
        *,
        provider: str,
        endpoint: str,
        urgent: bool = False,
        deadline: datetime | None = None,
        dedupe: bool = True,
        webhook_url: str | None = None,
    ) -> str:
        """
        Submit one LLM request; returns the id to give to `result`.

        The request waits for others with the same provider, endpoint and model,
        and they are sent in one batch. With `urgent`, or with a `deadline` (aware)
        that a batch would likely miss, it is sent at once as a direct call. If the
        deadline comes near while the batch runs, the request is sent as a direct
        call then. A request whose deadline passes before it is sent ends with the
        error `deadline_exceeded`.

        With `dedupe`, callers of equal unanswered requests share one: it is sent
        once, and each caller gets its answer under its own id. If one caller
        cancels or its deadline passes, the others still get the answer.
        `webhook_url` receives a webhook (event type `llm.request.ended`, with this
        caller's id) each time the request ends.

        Raises:
            UnknownProvider, InvalidArgument, PayloadTooLarge, InvalidWebhookURL.
            QueueMemoryFull: the server is over LETTA_QUEUE_MAX_MEMORY_SHARE.
        """
        request = self._checked(body, provider, endpoint)
        deadline_ms = None if deadline is None else arguments.unix_ms("deadline", deadline)
        callback = self._callback_for(webhook_url)
        await self._memory.admit()
        if urgent or self._is_near(deadline):
            return await self._submit_urgent(request, deadline_ms, callback)
        (id_,) = await self._submit([request], deadline_ms, dedupe=dedupe, callback=callback)
        return id_

    async def submit_many(
        self,
        bodies: Iterable[Mapping[str, Any]],
        *,
        provider: str,
        endpoint: str,
        deadline: datetime | None = None,
        dedupe: bool = True,
        webhook_url: str | None = None,
    ) -> list[str]:
        """
        Submit many LLM requests; returns their ids in order.

        All are checked before the first is stored. They are stored a few hundred
        at a time: if that fails half way, the stored ones are answered
        nevertheless. Otherwise as `submit`.
        """
        requests = [self._checked(body, provider, endpoint) for body in bodies]
        deadline_ms = None if deadline is None else arguments.unix_ms("deadline", deadline)
        callback = self._callback_for(webhook_url)
        if self._is_near(deadline):
            await self._memory.admit()
            return [await self._submit_urgent(each, deadline_ms, callback) for each in requests]
        by_group: dict[Group, list[int]] = {}
        for number, request in enumerate(requests):
            by_group.setdefault(request.group, []).append(number)
        ids = [""] * len(requests)
        for numbers in by_group.values():
            for start in range(0, len(numbers), _CHUNK):
                chunk = numbers[start : start + _CHUNK]
                await self._memory.admit()
                stored = await self._submit(
                    [requests[number] for number in chunk],
                    deadline_ms,
                    dedupe=dedupe,
                    callback=callback,
                )
                for number, id_ in zip(chunk, stored, strict=True):
                    ids[number] = id_
        return ids

    async def result(self, request_id: str, *, timeout_s: float | None = None) -> Any:
        """
        Wait for a request's answer; returns the provider's response body.

        Raises:
            RequestFailed: the request ended with an error.
            ResultTimeout: not answered within `timeout_s`; ask again later.
            NotFound: unknown, or the answer has expired (LETTA_LLM_RESULT_TTL_S,
                LETTA_LLM_READ_RESULT_TTL_S).
        """
        arguments.require_name("request_id", request_id)
        requests = self._requests
        try:
            # Callers that share a request are notified under its one id.
            shared_id, _ = split_request_id(request_id)
            async with asyncio.timeout(timeout_s), self._answers.watch(shared_id) as published:
                while True:
                    published.clear()
                    answer = await reach(requests.read_answer(request_id))
                    if answer is not None:
                        break
                    if not await reach(requests.is_open(request_id)):
                        answer = await reach(requests.read_answer(request_id))
                        if answer is None:
                            raise NotFound(f"no request {request_id!r}, or its answer has expired")
                        break
                    await _wait_for(published, _ANSWER_POLL_S)
        except TimeoutError:
            raise ResultTimeout(f"{request_id!r} has no answer after {timeout_s} s") from None
        if not answer.ok:
            raise RequestFailed(answer.kind, answer.message)
        return answer.body

    async def flush(self) -> Job:
        """Send every waiting request now; the job's result is the number of new batches."""
        return await self._jobs.enqueue(FLUSH_LLM_BATCHES, priority=Priority.HIGH)

    async def cancel(self, request_id: str, *, everybody: bool = False) -> bool:
        """
        Cancel a request: it ends with the error `canceled` unless other callers share it.

        Each caller cancels only for itself, by its own id. `everybody`, for
        operators, cancels for all callers. The batch is canceled at the provider
        when none of its requests is wanted. Returns False when the request is
        answered or unknown.
        """
        arguments.require_name("request_id", request_id)
        code, batch_id = await reach(self._requests.cancel(request_id, everybody=everybody))
        if batch_id:
            await self.batches.cancel_unwanted(batch_id)
        return code > 0

    async def aclose(self) -> None:
        """Stop listening for answers."""
        await self._answers.aclose()

    # -- inside ----------------------------------------------------------------

    def _checked(self, body: Mapping[str, Any], provider: str, endpoint: str) -> LLMRequest:
        require_names(provider, endpoint)
        if isinstance(body, Mapping) and "model" in body:
            arguments.require_name("body['model']", body["model"], longest=256)
        limit = self._options.max_bytes
        return check_request(body, provider=provider, endpoint=endpoint, max_bytes=limit)

    async def _submit(
        self,
        requests: list[LLMRequest],
        deadline_ms: int | None,
        *,
        dedupe: bool,
        callback: Callback,
    ) -> list[str]:
        pairs = [(f"req_{uuid.uuid4().hex}", request) for request in requests]
        first, group = pairs[0][0], requests[0].group
        now, later = self._flush_bodies(group)
        return await reach(
            self._requests.submit(
                pairs,
                # Named after the first request, so that a call that is sent again
                # starts no second flush.
                flush_now=PreparedJob(f"llm:full:{first}", now),
                flush_later=PreparedJob(f"llm:age:{first}", later),
                rules=self._rules[group.provider],
                dedupe=dedupe,
                deadline_ms=deadline_ms,
                callback=callback,
            )
        )

    def _flush_bodies(self, group: Group) -> tuple[bytes, bytes]:
        """
        The bodies of the jobs that flush a group when it is full, and at its maximum age.

        Encoded at most once a second: few are stored, and their enqueue time need not be exact.
        """
        known, made, now, later = self._flushes
        if known != group or time.monotonic() - made > 1:
            now = self._prepared.flush("", group, full_only=True).body
            later = self._prepared.flush("", group).body
            self._flushes = (group, time.monotonic(), now, later)
        return now, later

    async def _submit_urgent(
        self, request: LLMRequest, deadline_ms: int | None, callback: Callback
    ) -> str:
        request_id = f"req_{uuid.uuid4().hex}"
        job = self._prepared.single(request_id)
        return await reach(
            self._requests.submit_urgent(
                request_id,
                request,
                job=job,
                job_keys=self._keys.job_keys(job.id, Priority.HIGH),
                deadline_ms=deadline_ms,
                callback=callback,
            )
        )

    def _callback_for(self, url: str | None) -> Callback:
        if url is None:
            return NOBODY
        url = arguments.require_webhook_url(url, "webhook_url")
        # The script adds the request's id: the request may turn out to be a shared one.
        who = hashlib.sha256(url.encode()).hexdigest()[:16]
        return Callback(who, self._prepared.callback_body(url))

    def _is_near(self, deadline: datetime | None) -> bool:
        if deadline is None:
            return False
        # A batch first gathers requests, then the provider needs at least as long again.
        left_s = deadline.timestamp() - datetime.now(UTC).timestamp()
        gathering_s = 2 * self._options.batch_max_age_s
        return left_s < max(gathering_s, self._options.deadline_margin_s)


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
