"""
JobQueue: what services and the Letta server call. Needs no arq.

Every method that stores something checks its arguments first, raises a named
error (worker/errors.py) when it refuses, and stores all or nothing.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from cache.keys import QueueKeys
from worker.effects.batches import BatchStore, PreparedJob
from worker.effects.deliveries import Delivery, DeliveryStore
from worker.effects.handle import Job, reach
from worker.effects.notices import Notices
from worker.effects.secrets import SecretBox
from worker.errors import (
    NotFound,
    RequestFailed,
    ResultTimeout,
)
from worker.policy import checks
from worker.policy.batch import LLMRequest, check_request
from worker.policy.priority import Priority
from worker.producer import Limits, Producer
from worker.webhooks import WebhookOptions, Webhooks

FLUSH_LLM_GROUP = "flush_llm_group"
FLUSH_LLM_BATCHES = "flush_llm_batches"
RUN_LLM_REQUEST = "run_llm_request"

# Answers are told on a channel; this look is for a message that was lost.
_NOTICE_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class QueueOptions:
    """Limits of one client. Sizes are bytes, times seconds."""

    max_job_bytes: int = 1_048_576
    max_length: int = 0
    max_memory_share: float = 0.0
    webhooks: WebhookOptions = field(default_factory=WebhookOptions)
    webhook_retention_s: float = 604_800.0
    webhook_encryption_key: bytes | None = None
    max_llm_bytes: int = 1_048_576
    llm_batch_max_requests: int = 500
    llm_batch_max_age_s: float = 60.0
    llm_result_ttl_s: float = 259_200.0


class JobQueue(Producer):
    """
    The queue's client, over one Redis client; see `worker.open_queue`.

    Raises, from every method:
        QueueUnavailable: the server cannot be reached; nothing is known to be stored.
    """

    def __init__(
        self, client: Any, options: QueueOptions | None = None, *, keys: QueueKeys | None = None
    ) -> None:
        self.options = options or QueueOptions()
        limits = Limits(
            self.options.max_job_bytes, self.options.max_length, self.options.max_memory_share
        )
        super().__init__(client, keys or QueueKeys(), limits)
        self.deliveries = DeliveryStore(
            client, self.keys, retention_s=self.options.webhook_retention_s
        )
        self.batches = BatchStore(client, self.keys, result_ttl_s=self.options.llm_result_ttl_s)
        self._answers = Notices(client, self.keys.llm_answered)
        self.webhooks = Webhooks(
            self.jobs,
            self.deliveries,
            SecretBox(self.options.webhook_encryption_key),
            self.options.webhooks,
            memory=self._memory,
            job_body=self._body,
        )

    async def aclose(self) -> None:
        """Stop what waits in the background; the Redis client stays its owner's."""
        await self._answers.aclose()

    # -- webhooks --------------------------------------------------------------

    async def send_webhook(
        self,
        url: str,
        payload: Any,
        *,
        event_type: str,
        webhook_id: str | None = None,
        secret: str | None = None,
        secrets: Sequence[str] = (),
        bearer: str | None = None,
        headers: Mapping[str, str] | None = None,
        endpoint_id: str | None = None,
        ordering_key: str | None = None,
        deadline: datetime | None = None,
        on_end: str | None = None,
        priority: Priority = Priority.DEFAULT,
        delay_s: float = 0,
    ) -> str:
        """
        Store a webhook for delivery; returns its id, the receiver's `webhook-id`.

        `payload` is bytes, sent as they are, or anything that JSON can hold. A
        `webhook_id` that was used before stores nothing and returns the same
        id: sending again is safe. `secret`, `secrets` (`whsec_...` or `whsk_...`,
        several while one replaces another) sign this one instead of
        LETTA_WEBHOOK_SECRET; `bearer` is sent as `Authorization: Bearer`.

        Attempts at one `endpoint_id`, or at one host without it, share limits and
        a circuit breaker. Of deliveries with one `ordering_key` at the same
        endpoint, the next is tried when the one before has ended. At the
        `deadline` (aware) it is dead, whatever is left of its attempts. `on_end`
        names a worker's function that is called with the delivery, as a dict,
        when it has ended: `async def f(ctx, delivery)`, once or more.

        Raises:
            InvalidWebhookURL, InvalidArgument, NotSerializable, PayloadTooLarge.
        """
        return await self.webhooks.send(
            url,
            payload,
            event_type=event_type,
            webhook_id=webhook_id,
            secret=secret,
            secrets=secrets,
            bearer=bearer,
            headers=headers,
            endpoint_id=endpoint_id,
            ordering_key=ordering_key,
            deadline=deadline,
            on_end=on_end,
            priority=priority,
            delay_s=delay_s,
        )

    async def delivery(self, delivery_id: str) -> Delivery:
        """
        A webhook's state and attempts.

        Raises:
            NotFound: never sent, or ended longer ago than LETTA_WEBHOOK_RETENTION_S.
        """
        return await self.webhooks.get(delivery_id)

    # -- LLM requests ----------------------------------------------------------

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
        likely miss, sends it by itself at once; a request whose deadline passes
        before it is sent ends with the error `deadline_exceeded`. With `dedupe`
        an equal request that is still unanswered is shared: same id, same answer.

        Raises:
            UnknownProvider, InvalidArgument, PayloadTooLarge.
        """
        limit = self.options.max_llm_bytes
        request = check_request(body, provider=provider, endpoint=endpoint, max_bytes=limit)
        deadline_ms = None if deadline is None else checks.unix_ms("deadline", deadline)
        request_id = f"req_{uuid.uuid4().hex}"
        await reach(self._memory.admit())
        if urgent or self._is_near(deadline):
            return await self._submit_urgent(request_id, request, deadline_ms)
        group = request.group
        row = [group.provider, group.endpoint, group.model]
        return await reach(
            self.batches.submit(
                request_id,
                request,
                # Named after the request that would complete the batch: a call
                # that is sent again starts no second flush.
                flush_now=self._prepared(
                    f"llm:full:{request_id}", FLUSH_LLM_GROUP, *row, full_only=True
                ),
                flush_later=self._prepared(f"llm:age:{request_id}", FLUSH_LLM_GROUP, *row),
                limit=self.options.llm_batch_max_requests,
                max_age_ms=int(self.options.llm_batch_max_age_s * 1000),
                dedupe=dedupe,
                deadline_ms=deadline_ms,
            )
        )

    async def llm_result(self, request_id: str, *, timeout_s: float | None = None) -> Any:
        """
        Wait for one request's answer: the provider's response body.

        Raises:
            RequestFailed: this request ended with an error of its own.
            ResultTimeout: not answered within `timeout_s`; ask again later.
            NotFound: unknown, or answered longer ago than LETTA_LLM_RESULT_TTL_S.
        """
        try:
            async with asyncio.timeout(timeout_s), self._answers.watch(request_id) as told:
                while True:
                    told.clear()
                    answer = await reach(self.batches.read_answer(request_id))
                    if answer is not None:
                        break
                    if not await reach(self.batches.is_open(request_id)):
                        answer = await reach(self.batches.read_answer(request_id))
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

    async def _submit_urgent(
        self, request_id: str, request: LLMRequest, deadline_ms: int | None
    ) -> str:
        job = self._prepared(f"llm:urgent:{request_id}", RUN_LLM_REQUEST, request_id)
        return await reach(
            self.batches.submit_urgent(
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
        return left_s < 2 * self.options.llm_batch_max_age_s

    # -- inside ----------------------------------------------------------------

    def _prepared(self, job_id: str, name: str, *args: Any, **kwargs: Any) -> PreparedJob:
        return PreparedJob(job_id, self._body(name, *args, **kwargs))


async def _wait_for(event: asyncio.Event, timeout_s: float) -> None:
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
