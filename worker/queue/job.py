"""Defines Job, the handle that `enqueue` returns: status, result, abort."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, Generic

from redis.exceptions import OutOfMemoryError

from cache.connection.pool import OUTAGE
from cache.connection.refusals import explain
from cache.encoding.codec import RemoteError
from worker.errors import (
    JobAborted,
    JobFailed,
    NotFound,
    QueueMemoryFull,
    QueueUnavailable,
    ResultTimeout,
)
from worker.queue.calls import T, T_co
from worker.queue.store import JobResult, JobStatus, QueueStore

# Interval between two reads of a result: short at first, then longer.
_POLL_MIN_S, _POLL_MAX_S = 0.01, 0.5


async def reach(work: Awaitable[T]) -> T:
    """
    Await a call of a store and translate its errors.

    Raises:
        QueueUnavailable: the server cannot be reached.
        QueueMemoryFull: the server is out of memory.
    """
    try:
        return await work
    except OutOfMemoryError as exc:
        raise QueueMemoryFull(f"the queue's server is out of memory: {explain(exc)}") from exc
    except OUTAGE as exc:
        raise QueueUnavailable(f"the queue's server cannot be used: {explain(exc)}") from exc


class Job(Generic[T_co]):
    """
    A handle on one job. `is_new` is False if a job with that id already existed.

    `confirmed`: whether as many replicas as asked had it in time; None when none were asked for.

    `Job[int]` is a job whose function returns an int; a job that was named by text is `Job[Any]`.
    """

    __slots__ = ("_store", "confirmed", "id", "is_new")

    def __init__(
        self,
        job_id: str,
        store: QueueStore,
        *,
        is_new: bool = True,
        confirmed: bool | None = None,
    ) -> None:
        self.id = job_id
        self.is_new = is_new
        self.confirmed = confirmed
        self._store = store

    async def status(self) -> JobStatus:
        """Return whether the job is deferred, queued, in_progress, complete or not_found."""
        return await reach(self._store.status(self.id))

    async def result(self, *, timeout_s: float | None = None) -> T_co:
        """
        Wait until the job has ended and return its result.

        Raises:
            JobFailed: it ended with an exception.
            JobAborted: it was aborted.
            ResultTimeout: it has not ended within `timeout_s`.
            NotFound: there is no such job, or its result is no longer kept.
        """
        value: T_co = _value(await self._wait(timeout_s))
        return value

    async def abort(self, *, timeout_s: float | None = 10.0) -> bool:
        """
        Request the job's abort and wait for its end. Return True if it ended as aborted.

        Raises:
            ResultTimeout: it has not ended within `timeout_s`. The request remains.
        """
        if not await reach(self._store.abort(self.id)):
            return False
        try:
            _value(await self._wait(timeout_s))
        except JobAborted:
            return True
        except (JobFailed, NotFound):
            return False
        return False

    async def _wait(self, timeout_s: float | None) -> JobResult:
        store = self._store
        try:
            async with asyncio.timeout(timeout_s):
                pause = _POLL_MIN_S
                while True:
                    found = await reach(store.result(self.id))
                    if found is not None:
                        return found
                    if await reach(store.status(self.id)) is JobStatus.NOT_FOUND:
                        # It may have ended between the two reads.
                        found = await reach(store.result(self.id))
                        if found is not None:
                            return found
                        raise NotFound(
                            f"job {self.id!r} does not exist, or its result is no longer kept"
                        )
                    await asyncio.sleep(pause)
                    pause = min(pause * 1.5, _POLL_MAX_S)
        except TimeoutError:
            raise ResultTimeout(
                f"job {self.id!r} has not ended after {timeout_s} s; it continues, read it later"
            ) from None

    def __repr__(self) -> str:
        return f"Job({self.id!r})"


def _value(found: JobResult) -> Any:
    if found.success:
        return found.value
    if isinstance(found.value, asyncio.CancelledError):
        raise JobAborted("the job was aborted")
    if isinstance(found.value, RemoteError):
        raise JobFailed(found.value.kind, found.value.message)
    raise JobFailed("Error", str(found.value))
