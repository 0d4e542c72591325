"""
Provides JobQueue, the facade that services and the Letta server call. Needs no arq.

Each method names the feature's method that documents it. Methods that store
something check their arguments first; when they refuse, they raise a named error
(worker/errors.py) and store nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from worker.errors import QueueDisabled
from worker.llm.client import LLMRequests
from worker.queue.bulk import Bulk
from worker.queue.calls import Call, JobName, T, Unique
from worker.queue.client import Jobs
from worker.queue.dead import DeadLetters
from worker.queue.history import FunctionHistory, Step
from worker.queue.job import Job
from worker.queue.pauses import Pause
from worker.queue.priority import Priority
from worker.webhooks.client import Webhooks
from worker.webhooks.records import Delivery

__all__ = ["JobQueue", "disabled_queue"]


class JobQueue:
    """
    The queue's client; see `worker.open_queue`.

    `jobs`, `webhooks`, `llm` and `dead` are the features with all their methods; `bulk` changes all
    jobs that match a filter.

    Every method raises:
        QueueUnavailable: the server cannot be reached; nothing is known to be stored.
        QueueDisabled: LETTA_USE_REDIS_QUEUE is off; nothing was stored.
    """

    def __init__(self, jobs: Jobs, webhooks: Webhooks, llm: LLMRequests, dead: DeadLetters) -> None:
        self.jobs = jobs
        self.webhooks = webhooks
        self.llm = llm
        self.dead = dead
        self.bulk = Bulk(jobs, dead)

    async def aclose(self) -> None:
        """Stop background tasks; the owner of the Redis client closes it."""
        await self.llm.aclose()
        await self.jobs.aclose()

    # -- jobs --------------------------------------------------------------------

    async def enqueue(
        self,
        name: JobName[T],
        *args: Any,
        priority: Priority = Priority.DEFAULT,
        job_id: str | None = None,
        delay_s: float = 0,
        at: datetime | None = None,
        unique: Unique | str | None = None,
        expires_s: float | None = None,
        then: Call | None = None,
        wait_replicas: int | None = None,
        **kwargs: Any,
    ) -> Job[T]:
        """Store a job: `queue.jobs.enqueue`."""
        return await self.jobs.enqueue(
            name,
            *args,
            priority=priority,
            job_id=job_id,
            delay_s=delay_s,
            at=at,
            unique=unique,
            expires_s=expires_s,
            then=then,
            wait_replicas=wait_replicas,
            **kwargs,
        )

    async def enqueue_many(
        self, calls: Iterable[Call[T]], *, wait_replicas: int | None = None
    ) -> list[Job[T]]:
        """Store many jobs: `queue.jobs.enqueue_many`."""
        return await self.jobs.enqueue_many(calls, wait_replicas=wait_replicas)

    async def schedule(
        self,
        schedule_id: str,
        job: Call,
        *,
        every_s: float | None = None,
        cron: str | None = None,
        wait_replicas: int | None = None,
    ) -> None:
        """Register a repeating job: `queue.jobs.schedule`."""
        await self.jobs.schedule(
            schedule_id, job, every_s=every_s, cron=cron, wait_replicas=wait_replicas
        )

    async def stats(self) -> dict[str, dict[str, float]]:
        """Count jobs per priority: `queue.jobs.stats`."""
        return await self.jobs.stats()

    async def history(
        self,
        *,
        function: str | None = None,
        priority: Priority | None = None,
        since: datetime | None = None,
        step: Step | None = None,
    ) -> list[FunctionHistory]:
        """Read how jobs ended, by function, priority and time: `queue.jobs.history.read`."""
        return await self.jobs.history.read(
            function=function, priority=priority, since=since, step=step
        )

    async def pause(
        self, *, function: JobName[Any] | None = None, priority: Priority | None = None
    ) -> bool:
        """Keep a function's or a priority's jobs from running: `queue.jobs.pauses.pause`."""
        return await self.jobs.pauses.pause(function=function, priority=priority)

    async def resume(
        self, *, function: JobName[Any] | None = None, priority: Priority | None = None
    ) -> bool:
        """End a pause: `queue.jobs.pauses.resume`."""
        return await self.jobs.pauses.resume(function=function, priority=priority)

    async def paused(self) -> list[Pause]:
        """List what is paused: `queue.jobs.pauses.list`."""
        return await self.jobs.pauses.list()

    # -- webhooks ----------------------------------------------------------------

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
        wait_replicas: int | None = None,
    ) -> str:
        """Store a webhook for delivery, return its id: `queue.webhooks.send`."""
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
            wait_replicas=wait_replicas,
        )

    async def delivery(self, delivery_id: str) -> Delivery:
        """Read a webhook's state and attempts: `queue.webhooks.get`."""
        return await self.webhooks.get(delivery_id)

    # -- LLM requests ------------------------------------------------------------

    async def submit_llm_request(
        self,
        body: Mapping[str, Any],
        *,
        provider: str,
        endpoint: str,
        urgent: bool = False,
        deadline: datetime | None = None,
        dedupe: bool = True,
        webhook_url: str | None = None,
        wait_replicas: int | None = None,
    ) -> str:
        """Submit one LLM request, return its id: `queue.llm.submit`."""
        return await self.llm.submit(
            body,
            provider=provider,
            endpoint=endpoint,
            urgent=urgent,
            deadline=deadline,
            dedupe=dedupe,
            webhook_url=webhook_url,
            wait_replicas=wait_replicas,
        )

    async def submit_many(
        self,
        bodies: Iterable[Mapping[str, Any]],
        *,
        provider: str,
        endpoint: str,
        deadline: datetime | None = None,
        dedupe: bool = True,
        webhook_url: str | None = None,
        wait_replicas: int | None = None,
    ) -> list[str]:
        """Submit many LLM requests, return their ids in order: `queue.llm.submit_many`."""
        return await self.llm.submit_many(
            bodies,
            provider=provider,
            endpoint=endpoint,
            deadline=deadline,
            dedupe=dedupe,
            webhook_url=webhook_url,
            wait_replicas=wait_replicas,
        )

    async def llm_result(self, request_id: str, *, timeout_s: float | None = None) -> Any:
        """Wait for one request's answer: `queue.llm.result`."""
        return await self.llm.result(request_id, timeout_s=timeout_s)

    async def flush_llm_batches(self) -> Job:
        """Send every waiting LLM request now: `queue.llm.flush`."""
        return await self.llm.flush()


class _Disabled:
    """Every feature of a queue that is switched off."""

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):
            raise AttributeError(name)
        raise QueueDisabled(
            "the queue is switched off by LETTA_USE_REDIS_QUEUE; do the work inline, or set it to "
            "true"
        )

    async def aclose(self) -> None:
        """Close nothing."""


def disabled_queue() -> JobQueue:
    """Build a queue that refuses every call with QueueDisabled, and connects to no server."""
    disabled: Any = _Disabled()
    return JobQueue(disabled, disabled, disabled, disabled)
