"""The state of a worker that its components use: arguments, counters, the server's clock."""

from __future__ import annotations

import asyncio
import os
import socket
import uuid
from typing import Any

from arq.constants import default_queue_name
from arq.utils import timestamp_ms
from arq.worker import Worker as ArqWorker

from cache.encoding import codec
from worker.engine.cron import ticks_of
from worker.engine.options import EngineOptions
from worker.engine.records import Claim, PollResult
from worker.engine.settings import Observer
from worker.keys import QUEUE_PREFIX, EngineKeys, QueueKeys


def new_worker_id() -> str:
    """Return a unique, readable id: host, process, and random digits in case a pid is reused."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:6]}"


class WorkerState(ArqWorker):
    """arq's Worker with our arguments and counters; `worker.engine.Worker` runs it."""

    loop: asyncio.AbstractEventLoop

    def __init__(
        self,
        *args: Any,
        options: EngineOptions | None = None,
        prefix: str = QUEUE_PREFIX,
        worker_id: str | None = None,
        observer: Observer | None = None,
        **kwargs: Any,
    ) -> None:
        if prefix != QUEUE_PREFIX and kwargs.get("queue_name") in (None, default_queue_name):
            kwargs["queue_name"] = QueueKeys(prefix).queue()
        kwargs["job_serializer"] = kwargs.get("job_serializer") or codec.encode
        kwargs["job_deserializer"] = kwargs.get("job_deserializer") or codec.decode
        super().__init__(*args, **kwargs)
        for job in self.cron_jobs:
            ticks_of(job, self.timezone)  # refuse here what can never run
        self.options = options or EngineOptions()
        self.worker_id = worker_id or new_worker_id()
        self.keys = EngineKeys(QueueKeys(prefix), self.queue_name)
        self.observer = observer
        self.jobs_given_back = 0
        self.jobs_dead = 0
        self.jobs_rescued = 0
        self.jobs_queued = 0
        self.claims: dict[bytes, Claim] = {}
        self.asked_to_end = asyncio.Event()
        self._draining = False
        self._clock_offset_s = 0.0

    @property
    def jobs_done(self) -> int:
        """Number of runs that ended since the start, however they ended."""
        return self.jobs_complete + self.jobs_failed + self.jobs_retried

    @property
    def is_draining(self) -> bool:
        return self._draining

    def learn_from(self, polled: PollResult) -> None:
        """Take the server's clock and the queue's size from a poll."""
        self._clock_offset_s = polled.now / 1000 - self.loop.time()
        self.jobs_queued = polled.size

    def server_ms(self) -> int:
        """Return the server's clock, Unix ms, extrapolated from the last poll."""
        if not self._clock_offset_s:
            return timestamp_ms()
        return int((self.loop.time() + self._clock_offset_s) * 1000)
