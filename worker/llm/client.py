"""
Submits LLM requests, waits for their answers and cancels them.
"""

from __future__ import annotations

import asyncio
from typing import Any

from worker.errors import NotFound, RequestFailed, ResultTimeout
from worker.keys import QueueKeys
from worker.llm.answer_store import split_request_id
from worker.llm.answer_subscriber import AnswerSubscriber
from worker.llm.answers import MALFORMED
from worker.llm.batch_client import Batches
from worker.llm.history import GroupHistories
from worker.llm.options import LLMOptions
from worker.llm.prepared import FLUSH_LLM_BATCHES, PreparedJobs
from worker.llm.requests import RequestStore
from worker.llm.submitting import Submissions
from worker.queue import arguments
from worker.queue.admission import MemoryGuard
from worker.queue.client import Jobs
from worker.queue.confirmation import Confirmations
from worker.queue.job import Job, reach
from worker.queue.priority import Priority

# A message on the channel announces an answer; this poll covers a lost message.
_ANSWER_POLL_S = 1.0


class LLMRequests(Submissions):
    """
    `queue.llm`; its batches are `queue.llm.batches`, how its requests ended `queue.llm.history`.

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
        confirmations: Confirmations,
        options: LLMOptions,
    ) -> None:
        super().__init__(
            keys, requests, prepared, memory, confirmations=confirmations, options=options
        )
        self.batches = batches
        self.history = GroupHistories(requests.client, keys)
        self._answers = answers
        self._jobs = jobs

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

    async def came(self, request_id: str) -> Any:
        """
        What the provider sent for a request that ended as `malformed`: bytes, or a JSON value.

        For operators: it was paid for, so it is kept as long as an unread answer, and the
        request is not sent again by itself.

        Raises:
            NotFound: the request has no such answer (now).
        """
        arguments.require_name("request_id", request_id)
        answer = await reach(self._requests.peek_answer(request_id))
        if answer is None or answer.kind != MALFORMED:
            raise NotFound(f"no malformed answer of {request_id!r} is kept")
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


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
