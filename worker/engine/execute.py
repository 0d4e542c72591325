"""
One claimed job, from its bytes to its end. No Redis here: what happens is told in an `End`.

A job is prepared (decoded, its function found), run with hooks and a timeout,
and judged. Nothing that a job, a hook or a serializer raises leaves `run`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import structlog
from arq.jobs import Deserializer, Serializer
from arq.utils import ms_to_datetime
from arq.worker import Function, JobExecutionFailed, Retry, RetryJob

from worker.engine import chain
from worker.engine.deadlines import Deadlines
from worker.engine.options import EngineOptions
from worker.engine.records import Claim, End, blob
from worker.errors import JobError
from worker.policy.retry import Again, Dead, RetryPolicy

Hook = Callable[[dict[Any, Any]], Awaitable[Any]]

# A larger result would not pass through the server's protocol limits unharmed.
_MOST_RESULT_BYTES = 64 * 1024 * 1024
_MOST_ERROR_CHARS = 2000


class Observer(Protocol):
    """Told once when a run of a job ends; for metrics. Times are seconds."""

    def job_ended(
        self, *, task: str, queue: str, outcome: str, run_s: float, queue_s: float
    ) -> None:
        """`outcome`: completed, retried, dead, aborted, given_back, parked or late."""


@dataclass(slots=True)
class Settings:
    """What the worker was told; `max_tries` and times as in `arq.worker.Worker`."""

    functions: Mapping[str, Any]
    ctx: dict[Any, Any]
    options: EngineOptions
    worker_id: str
    queue_names: list[str]
    serializer: Serializer
    deserializer: Deserializer
    job_timeout_s: float | None
    keep_result_s: float
    keep_result_forever: bool
    max_tries: int
    retry_jobs: bool
    allow_abort_jobs: bool
    park_s: float
    on_job_start: Hook | None = None
    on_job_end: Hook | None = None
    after_job_end: Hook | None = None
    observer: Observer | None = None
    rng: Callable[[], float] = field(default=random.random)


@dataclass(slots=True)
class Body:
    """A decoded job and the function that it names."""

    name: str
    args: Any
    kwargs: Any
    enqueued_ms: int
    tries: int  # this run's number, from 1
    options: Mapping[str, Any]
    function: Any = None


class Executor:
    """Runs claims. `now_ms` is the server's clock; `collect` takes the ends, `note` starts."""

    def __init__(
        self,
        settings: Settings,
        *,
        now_ms: Callable[[], int],
        collect: Callable[[Claim, End, str], None],
        note: Callable[[Claim, End], None],
    ) -> None:
        self.settings = settings
        self._now_ms = now_ms
        self._collect = collect
        self._note = note
        self._loop = asyncio.get_running_loop()
        self._deadlines = Deadlines(lambda claim: interrupt(claim, "timeout"))
        self._log = structlog.get_logger("worker.engine").bind()

    def close(self) -> None:
        self._deadlines.close()

    async def run(self, claim: Claim) -> None:
        """Run one claim to its end; hands exactly one end to `collect`."""
        body = self._prepare(claim)
        if not isinstance(body, Body):
            self._collect(claim, *body)
            return
        settings = self.settings
        if body.options.get("us") == "queued":
            self._note(claim, claim.end("started", {"unique": claim.unique}))
        ctx = {
            **settings.ctx,
            "job_id": claim.job_id,
            "job_try": body.tries,
            "enqueue_time": ms_to_datetime(body.enqueued_ms),
            "score": int(float(claim.due)),
            "worker_id": settings.worker_id,
            "priority": claim.priority,
            "queue": settings.queue_names[claim.number - 1],
        }
        structlog.contextvars.bind_contextvars(
            job_id=claim.job_id,
            task=body.name,
            queue=claim.priority.value,
            **{"try": body.tries},
        )
        start_ms, begun = self._now_ms(), self._loop.time()
        try:
            value = await self._call(claim, body, ctx, begun)
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  (a job may raise anything)
            end, outcome = self._failed(claim, body, exc, start_ms)
        else:
            end, outcome = self._succeeded(claim, body, value, start_ms)
        if settings.on_job_end is not None:
            await self._hook("on_job_end", settings.on_job_end, ctx)
        run_s = self._loop.time() - begun
        self._tell(claim, body, outcome, run_s, start_ms)
        if settings.after_job_end is None:
            self._collect(claim, end, outcome)
            return
        claim.recorded = asyncio.Event()
        self._collect(claim, end, outcome)
        await claim.recorded.wait()
        await self._hook("after_job_end", settings.after_job_end, ctx)

    # -- before ----------------------------------------------------------------

    def _prepare(self, claim: Claim) -> Body | tuple[End, str]:
        if claim.body is None:
            # A stock client's lifetime of the body has passed, as it asked.
            lost = Body("<unknown>", (), {}, 0, claim.tries + 1, {})
            return self._dead(claim, lost, JobExecutionFailed("job expired"), "expired")
        try:
            body = self._decode(claim, claim.body)
        except Exception as exc:  # noqa: BLE001  (whatever a foreign deserializer raises)
            unread = Body("<unknown>", (), {}, 0, claim.tries + 1, {})
            error = JobExecutionFailed(
                f"unable to deserialize job: {exc}; give the worker the job_deserializer of the "
                "client that enqueued it (pickle is read only when named)"
            )
            return self._dead(claim, unread, error, "undecodable")
        if self.settings.allow_abort_jobs and _is_aborted(claim, body):
            self._log.info("job.aborted", job_id=claim.job_id, task=body.name, started=False)
            return self._aborted(claim, body, self._now_ms())
        expires = body.options.get("x")
        if expires is not None and self._now_ms() > expires:
            return self._dead(claim, body, JobExecutionFailed("job expired"), "expired")
        return self._find(claim, body)

    def _decode(self, claim: Claim, data: bytes) -> Body:
        fields = self.settings.deserializer(data)
        # As in arq: a try named at the enqueue counts when it is higher.
        tries = max(claim.tries + 1, fields["t"] or 0)
        options = fields.get("o") or {}
        claim.unique = options.get("u")
        return Body(fields["f"], fields["a"], fields["k"], fields["et"], tries, options)

    def _find(self, claim: Claim, body: Body) -> Body | tuple[End, str]:
        function = self.settings.functions.get(body.name)
        if function is None:
            error = JobExecutionFailed(f"function {body.name!r} not found")
            details = self._result(body, claim, False, error, self._now_ms())
            details |= {
                "most": int(self.settings.park_s * 1000),
                "reason": "unknown",
                "error": str(error),
                "tries": claim.tries,
                "name": body.name,
                "unique": claim.unique,
            }
            return claim.end("park", details), "parked"
        body.function = function
        limit = self._max_tries(function)
        if limit is not None and body.tries > limit:
            error = JobExecutionFailed(f"max {limit} retries exceeded")
            return self._dead(claim, body, error, "exhausted")
        return body

    # -- the run ---------------------------------------------------------------

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

    async def _hook(self, name: str, hook: Hook, ctx: dict[Any, Any]) -> None:
        try:
            await hook(ctx)
        except (Exception, asyncio.CancelledError) as exc:  # noqa: BLE001  (so may a hook)
            # The job is over; a hook cannot change how it ended.
            self._log.warning("hook.failed", hook=name, error=describe(exc))

    # -- after -----------------------------------------------------------------

    def _succeeded(self, claim: Claim, body: Body, value: Any, start_ms: int) -> tuple[End, str]:
        details = self._result(body, claim, True, value, start_ms)
        if claim.unique is not None:
            details["unique"] = claim.unique
        if body.options:
            try:
                details |= chain.following(claim.job_id, body.options, value, now_ms=self._now_ms())
            except Exception as exc:  # noqa: BLE001  (the result has no encoding)
                return self._dead(claim, body, exc, "permanent")
        return claim.end("done", details), "completed"

    def _failed(
        self, claim: Claim, body: Body, exc: BaseException, start_ms: int
    ) -> tuple[End, str]:
        if isinstance(exc, asyncio.CancelledError) and claim.stop:
            if claim.stop == "abort":
                return self._aborted(claim, body, start_ms)
            return given_back(claim), "given_back"
        decision = self._judge(body, exc)
        if isinstance(decision, Again):
            delay_ms = round(decision.delay_s * 1000)
            expires = body.options.get("x")
            if expires is None or self._now_ms() + delay_ms <= expires:
                details = {"delay": delay_ms, "tries": body.tries}
                error = None if isinstance(exc, Retry) else describe(exc)
                self._log.info("job.retry_scheduled", wait_s=delay_ms / 1000, error=error)
                return claim.end("retry", details), "retried"
            decision = Dead("expired")
        return self._dead(claim, body, exc, decision.reason, start_ms=start_ms)

    def _judge(self, body: Body, exc: BaseException) -> Again | Dead:
        limit = self._max_tries(body.function)
        policy = self._policy(body.function)
        is_over = limit is not None and body.tries >= limit
        if self.settings.retry_jobs and isinstance(exc, Retry):
            return Dead("exhausted") if is_over else Again((exc.defer_score or 0) / 1000)
        is_cancelled = isinstance(exc, asyncio.CancelledError | RetryJob)
        if policy is None and self.settings.retry_jobs and is_cancelled:
            return Dead("exhausted") if is_over else Again(0)
        if policy is None:
            # A settings class without a policy of ours keeps arq's rule.
            return Dead("failed")
        age_s = (self._now_ms() - body.enqueued_ms) / 1000
        return policy.decide(
            exc, tries=body.tries, age_s=age_s, rng=self.settings.rng, max_tries=limit
        )

    def _policy(self, function: Any) -> RetryPolicy | None:
        return getattr(function, "retry", None) or self.settings.options.retry

    def _max_tries(self, function: Function) -> int | None:
        if function.max_tries is not None:
            return function.max_tries
        policy = self._policy(function)
        return self.settings.max_tries if policy is None else policy.max_tries

    def _dead(
        self,
        claim: Claim,
        body: Body,
        exc: BaseException,
        reason: str,
        *,
        start_ms: int | None = None,
    ) -> tuple[End, str]:
        shown: BaseException = exc
        if isinstance(exc, (Retry, RetryJob)):
            shown = JobExecutionFailed(f"max {self._max_tries(body.function)} retries exceeded")
        at = self._now_ms() if start_ms is None else start_ms
        details = self._result(body, claim, False, shown, at)
        details |= {
            "reason": reason,
            "error": describe(shown),
            "tries": body.tries,
            "name": body.name,
            "unique": claim.unique,
        }
        self._log.warning(
            "job.died",
            job_id=claim.job_id,
            task=body.name,
            reason=reason,
            tries=body.tries,
            error=describe(shown),
            exc_info=None if isinstance(shown, JobError | JobExecutionFailed) else shown,
        )
        return claim.end("dead", details), "dead"

    def _aborted(self, claim: Claim, body: Body, start_ms: int) -> tuple[End, str]:
        error = asyncio.CancelledError()
        details = self._result(body, claim, False, error, start_ms)
        details["unique"] = claim.unique
        return claim.end("done", details), "aborted"

    def _result(
        self, body: Body, claim: Claim, success: bool, value: Any, start_ms: int
    ) -> dict[str, Any]:
        """{result, ttl} as stock arq stores them, or {} when none is kept."""
        function = body.function
        forever = getattr(function, "keep_result_forever", None)
        if forever is None:
            forever = self.settings.keep_result_forever
        keep_s = getattr(function, "keep_result_s", None)
        if keep_s is None:
            keep_s = self.settings.keep_result_s
        if not forever and keep_s <= 0:
            return {}
        fields = {
            "t": body.tries,
            "f": body.name,
            "a": body.args,
            "k": body.kwargs,
            "et": body.enqueued_ms,
            "s": success,
            "r": value,
            "st": start_ms,
            "ft": self._now_ms(),
            "q": self.settings.queue_names[claim.number - 1],
            "id": claim.job_id,
        }
        data = self._encode(fields, value)
        return {"result": blob(data), "ttl": None if forever else max(1, round(keep_s * 1000))}

    def _encode(self, fields: dict[str, Any], value: Any) -> bytes:
        try:
            data = self.settings.serializer(fields)
            if len(data) <= _MOST_RESULT_BYTES:
                return data
            problem = f"the result takes {len(data)} bytes, over the limit of {_MOST_RESULT_BYTES}"
        except Exception as exc:  # noqa: BLE001  (whatever a foreign serializer raises)
            problem = describe(exc)
        self._log.warning("job.result_not_kept", job_id=fields["id"], error=problem)
        # What was raised is worth more than that it could not be encoded.
        what = describe(value) if isinstance(value, BaseException) else f"result: {problem}"
        replaced = JobExecutionFailed(f"unable to serialize {what}")
        return self.settings.serializer({**fields, "s": False, "r": replaced, "a": [], "k": {}})

    def _tell(self, claim: Claim, body: Body, outcome: str, run_s: float, start_ms: int) -> None:
        if outcome == "completed":
            self._log.info("job.completed", run_s=round(run_s, 4))
        elif outcome in ("aborted", "given_back"):
            self._log.info("job." + outcome, run_s=round(run_s, 4), why=claim.stop)
        if self.settings.observer is not None:
            self.settings.observer.job_ended(
                task=body.name,
                queue=claim.priority.value,
                outcome=outcome,
                run_s=run_s,
                queue_s=max(0.0, (start_ms - float(claim.due)) / 1000),
            )


def interrupt(claim: Claim, why: str) -> None:
    """Cancel a running claim; the first reason counts. A task that has not begun is left to the caller."""
    if not claim.stop and claim.task is not None and not claim.ended:
        claim.stop = why
        claim.task.cancel()


def given_back(claim: Claim) -> End:
    return claim.end("back", {"due": claim.due})


def describe(exc: BaseException) -> str:
    text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return text[:_MOST_ERROR_CHARS]


def _is_aborted(claim: Claim, body: Body) -> bool:
    # A mark of before this job's time was meant for an earlier job of the same id.
    # Stock arq moves a deferred job to due time 1 before it sets the mark.
    return claim.due == "1" or (claim.mark_ms is not None and claim.mark_ms >= body.enqueued_ms)
