"""
Runs one claimed job, from its bytes to its end. No Redis here: the result is an `End`.

prepare.py decodes the job, this module runs it with hooks and a timeout, and
outcome.py decides how it ended. Nothing that a job, a hook, a policy, an observer
or a serializer raises leaves `run`, `SystemExit` included: it ends the try.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from arq.worker import Retry, RetryJob

from cache.logs import get_logger
from worker import tracing
from worker.engine.deadlines import Deadlines
from worker.engine.failures import SafeLog, describe, is_closed
from worker.engine.log_context import log_context
from worker.engine.outcome import Body, Decider, broken
from worker.engine.prepare import Preparer
from worker.engine.records import QUEUE_WORDS, Claim, End
from worker.engine.settings import Hook, RunSettings
from worker.errors import Postponed

# Jobs that waited longer than this tend to end together: one clock tick wakes many.
CROWD_S = 0.005
# A job asks for another run, or is canceled: its trace shows no error.
_NO_FAILURES = (Retry, RetryJob, Postponed, asyncio.CancelledError)


class Executor:
    """
    Runs claims. `now_ms` is the server's clock. Callbacks: `collect` takes ends, `note`
    takes starts, `vacate` is called with a job that is over before its end is built.
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        now_ms: Callable[[], int],
        collect: Callable[[Claim, End, str], None],
        note: Callable[[Claim, End], None],
        vacate: Callable[[Claim], None],
    ) -> None:
        self.settings = settings
        self._now_ms = now_ms
        self._collect = collect
        self._note = note
        self._vacate = vacate
        self._loop = asyncio.get_running_loop()
        self._decider = Decider(settings, now_ms)
        self._preparer = Preparer(settings, self._decider, now_ms)
        self._deadlines = Deadlines(lambda claim: interrupt(claim, "timeout"))
        self._log = SafeLog(get_logger(__name__).bind())
        self._log_context = log_context("job_id", "task", "queue", "try")

    def close(self) -> None:
        self._deadlines.close()

    async def run(self, claim: Claim) -> None:
        """Run one claim to its end; pass exactly one end to `collect`."""
        # Each await of a coroutine costs a short job a percent of its time, so this is one.
        try:
            body = self._preparer.prepare(claim)
            if not isinstance(body, Body):
                self._collect(claim, *body)
                return
            settings, ctx = self.settings, self._begin(claim, body)
            start_ms, begun = self._now_ms(), self._loop.time()
            try:
                call = self._traced if tracing.is_on() else self._call
                value = await call(claim, body, ctx, begun)
            except BaseException as exc:
                if is_closed(exc, claim.task):
                    raise
                end, outcome = self._decider.failed(claim, body, exc, start_ms)
            else:
                if self._loop.time() - begun >= CROWD_S and settings.on_job_end is None:
                    await self._make_way(claim)
                end, outcome = self._decider.succeeded(claim, body, value, start_ms)
            if settings.on_job_end is not None:
                await self._hook("on_job_end", settings.on_job_end, ctx)
            claim.run_s = self._loop.time() - begun
            due_ms = float(claim.due)
            claim.wait_s = (start_ms - due_ms) / 1000 if start_ms > due_ms else 0.0
            self._report(claim, body, outcome)
            if settings.after_job_end is None:
                self._collect(claim, end, outcome)
                return
            claim.recorded = asyncio.Event()
            self._collect(claim, end, outcome)
            await claim.recorded.wait()
            await self._hook("after_job_end", settings.after_job_end, ctx)
        except BaseException as exc:
            if claim.ended or is_closed(exc, claim.task):
                raise
            # Giving it back would break the next worker as well.
            self._log.exception("job.broken", job_id=claim.job_id, error=describe(exc))
            self._collect(claim, broken(claim, exc), "dead")

    def _begin(self, claim: Claim, body: Body) -> dict[Any, Any]:
        """Report the start if somebody waits for it. Return the job's `ctx`."""
        if body.options.get("us") == "queued":
            self._note(claim, claim.end("started", {"unique": claim.unique}))
        self._log_context(claim.job_id, body.name, QUEUE_WORDS[claim.number - 1], body.tries)
        return {
            **self.settings.ctx,
            "job_id": claim.job_id,
            "job_try": body.tries,
            "enqueue_time": datetime.fromtimestamp(body.enqueued_ms / 1000, UTC),
            "score": int(float(claim.due)),
            "worker_id": self.settings.worker_id,
            "priority": claim.priority,
            "queue": self.settings.queue_names[claim.number - 1],
        }

    async def _traced(self, claim: Claim, body: Body, ctx: dict[Any, Any], begun: float) -> Any:
        with tracing.processing(
            QUEUE_WORDS[claim.number - 1],
            claim.job_id,
            task=body.name,
            tries=body.tries,
            carrier=body.options.get("trace"),
            no_failures=_NO_FAILURES,
        ):
            return await self._call(claim, body, ctx, begun)

    async def _call(self, claim: Claim, body: Body, ctx: dict[Any, Any], begun: float) -> Any:
        function = body.function
        timeout_s = function.timeout_s
        if timeout_s is None:
            timeout_s = self.settings.job_timeout_s
        if timeout_s is not None:
            self._deadlines.watch(claim, timeout_s, begun)
        try:
            if self.settings.on_job_start is not None:
                await self.settings.on_job_start(ctx)
            return await function.coroutine(ctx, *body.args, **body.kwargs)
        except asyncio.CancelledError:
            if claim.stop == "timeout":
                raise TimeoutError(f"no end within {timeout_s:g} s") from None
            raise
        finally:
            if timeout_s is not None:
                self._deadlines.forget(claim)

    async def _make_way(self, claim: Claim) -> None:
        """Let the jobs that wait for a slot start before this one's end is built."""
        self._vacate(claim)
        with contextlib.suppress(asyncio.CancelledError):  # the job is over: too late to cancel
            # The first sleep lets the next job take its first step. The second does the
            # same for the next jobs of those that ended together with this one.
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    async def _hook(self, name: str, hook: Hook, ctx: dict[Any, Any]) -> None:
        try:
            await hook(ctx)
        except BaseException as exc:  # noqa: BLE001  (a hook may raise anything)
            # The job is over; a hook cannot change how it ended.
            self._log.warning("hook.failed", hook=name, error=describe(exc))

    def _report(self, claim: Claim, body: Body, outcome: str) -> None:
        # As `round` would, which takes a fifth of this function's time.
        rounded_s = int(claim.run_s * 10_000 + 0.5) / 10_000
        if outcome == "completed" and getattr(body.function, "quiet", False):
            self._log.debug("job.completed", run_s=rounded_s)
        elif outcome == "completed":
            self._log.info("job.completed", run_s=rounded_s)
        elif outcome == "aborted":
            self._log.info("job.aborted", run_s=rounded_s, why=claim.stop)
        elif outcome == "given_back":
            self._log.info("job.given_back", run_s=rounded_s, why=claim.stop)
        if self.settings.observer is None:
            return
        try:
            self.settings.observer.job_ended(
                task=body.name,
                queue=QUEUE_WORDS[claim.number - 1],
                outcome=outcome,
                run_s=claim.run_s,
                queue_s=claim.wait_s,
            )
        except BaseException as exc:  # noqa: BLE001  (an observer may raise anything)
            self._log.warning("hook.failed", hook="observer", error=describe(exc))


def interrupt(claim: Claim, why: str) -> None:
    """Cancel a running claim; the first reason counts. The caller ends a task that has not begun."""
    if not claim.stop and claim.task is not None and not claim.ended:
        claim.stop = why
        claim.task.cancel()
