"""
Decides how a run ended: done, retried, dead, aborted or given back; builds that end.

The job's policy decides about retries (worker/queue/policy.py), or arq's rules
when the settings class has no policy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from arq.worker import Function, JobExecutionFailed, Retry, RetryJob

from cache.encoding.codec import lua_text
from cache.logs import get_logger
from worker.engine import chain
from worker.engine.failures import SafeLog, describe
from worker.engine.records import Claim, End
from worker.engine.results import encode_result
from worker.engine.settings import RunSettings
from worker.errors import JobError, Postponed
from worker.queue.arguments import MAX_DELAY_S
from worker.queue.policy import Again, Dead, RetryPolicy

# The server refuses a TTL that reaches beyond its numbers, and with it the whole poll.
_MOST_KEEP_S = 1e12
# About how long a job waits while the queue's server refuses its commands.
_POSTPONED_S = 2.0


@dataclass(slots=True)
class Body:
    """A decoded job and its function."""

    name: str
    args: Any
    kwargs: Any
    enqueued_ms: int
    tries: int  # this run's number, from 1
    options: Mapping[str, Any]
    function: Any = None


class Decider:
    """Turns what a run returned or raised into `(end, outcome)`. `now_ms` is the server's clock."""

    def __init__(self, settings: RunSettings, now_ms: Callable[[], int]) -> None:
        self._settings = settings
        self._now_ms = now_ms
        self._log = SafeLog(get_logger(__name__).bind())

    def succeeded(self, claim: Claim, body: Body, value: Any, start_ms: int) -> tuple[End, str]:
        details = self.result(body, claim, True, value, start_ms)
        if claim.unique is not None:
            details["unique"] = claim.unique
        if body.options:
            try:
                details |= chain.following(claim.job_id, body.options, value, now_ms=self._now_ms())
            except BaseException as exc:  # noqa: BLE001  (the result cannot be encoded)
                return self.dead(claim, body, exc, "permanent")
        return claim.end("done", details), "completed"

    def failed(
        self, claim: Claim, body: Body, exc: BaseException, start_ms: int
    ) -> tuple[End, str]:
        if _is(exc, asyncio.CancelledError) and claim.stop:
            if claim.stop == "abort":
                return self.aborted(claim, body, start_ms)
            return given_back(claim), "given_back"
        if _is(exc, Postponed):
            return self._postponed(claim, exc), "given_back"
        decision = self._decide_safely(body, exc)
        if isinstance(decision, int):
            delay_ms = decision
            expires = body.options.get("x")
            if expires is None or self._now_ms() + delay_ms <= expires:
                details = {"delay": delay_ms, "tries": body.tries}
                error = None if _is(exc, Retry) else describe(exc)
                self._log.info("job.retry_scheduled", wait_s=delay_ms / 1000, error=error)
                return claim.end("retry", details), "retried"
            decision = Dead("expired")
        # As in arq, a run that asked for another one counts as retried, also when it may not.
        claim.asked_again = decision.reason == "exhausted" and _is(exc, Retry, RetryJob)
        return self.dead(claim, body, exc, decision.reason, start_ms=start_ms)

    def _postponed(self, claim: Claim, exc: BaseException) -> End:
        claim.stop = "refused"
        wait_s = _POSTPONED_S * (0.5 + self._settings.rng())
        self._log.warning("job.postponed", wait_s=round(wait_s, 3), error=describe(exc))
        return claim.end("back", {"due": str(self._now_ms() + round(wait_s * 1000))})

    def _decide_safely(self, body: Body, exc: BaseException) -> int | Dead:
        """Return the delay of the next try in ms, or why there is none."""
        try:
            decision = self._decide(body, exc)
            return _delay_ms(decision.delay_s) if isinstance(decision, Again) else decision
        except BaseException as problem:  # noqa: BLE001  (a user's policy or exception may raise)
            self._log.error("job.retry_undecided", error=describe(problem))
            return Dead("failed")

    def _decide(self, body: Body, exc: BaseException) -> Again | Dead:
        limit = self.max_tries(body.function)
        policy = self._policy(body.function)
        is_over = limit is not None and body.tries >= limit
        if self._settings.retry_jobs and isinstance(exc, Retry):
            return Dead("exhausted") if is_over else Again((exc.defer_score or 0) / 1000)
        is_cancelled = isinstance(exc, asyncio.CancelledError | RetryJob)
        if policy is None and self._settings.retry_jobs and is_cancelled:
            return Dead("exhausted") if is_over else Again(0)
        if policy is None:
            # Without a retry policy arq's rule holds: an exception ends the job.
            return Dead("failed")
        age_s = (self._now_ms() - body.enqueued_ms) / 1000
        return policy.decide(
            exc, tries=body.tries, age_s=age_s, rng=self._settings.rng, max_tries=limit
        )

    def _policy(self, function: Any) -> RetryPolicy | None:
        return getattr(function, "retry", None) or self._settings.options.retry

    def max_tries(self, function: Function) -> int | None:
        if function.max_tries is not None:
            return function.max_tries
        policy = self._policy(function)
        return self._settings.max_tries if policy is None else policy.max_tries

    def dead(
        self,
        claim: Claim,
        body: Body,
        exc: BaseException,
        reason: str,
        *,
        start_ms: int | None = None,
        result: BaseException | None = None,
    ) -> tuple[End, str]:
        """Build the end of a dead letter. `result` is what waits for its caller, if not `exc`."""
        shown: BaseException = exc
        if reason == "exhausted" and _is(exc, Retry, RetryJob):
            shown = JobExecutionFailed(f"max {self.max_tries(body.function)} retries exceeded")
        at = self._now_ms() if start_ms is None else start_ms
        details = self.result(body, claim, False, result or shown, at)
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
            exc_info=None if _is(shown, JobError, JobExecutionFailed) else shown,
        )
        return claim.end("dead", details), "dead"

    def aborted(self, claim: Claim, body: Body, start_ms: int) -> tuple[End, str]:
        error = asyncio.CancelledError()
        details = self.result(body, claim, False, error, start_ms)
        details["unique"] = claim.unique
        return claim.end("done", details), "aborted"

    def result(
        self, body: Body, claim: Claim, success: bool, value: Any, start_ms: int
    ) -> dict[str, Any]:
        """Return {result, ttl} as stock arq stores them, or {} when no result is kept."""
        function = body.function
        forever = getattr(function, "keep_result_forever", None)
        if forever is None:
            forever = self._settings.keep_result_forever
        keep_s = getattr(function, "keep_result_s", None)
        if keep_s is None:
            keep_s = self._settings.keep_result_s
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
            "q": self._settings.queue_names[claim.number - 1],
            "id": claim.job_id,
        }
        data, problem = encode_result(self._settings.serializer, fields)
        if problem:
            self._log.warning("job.result_not_kept", job_id=claim.job_id, error=problem)
        if data is None:
            return {}
        ttl_ms = max(1, round(min(_MOST_KEEP_S, keep_s) * 1000))
        return {"result": lua_text(data), "ttl": None if forever else ttl_ms}


def given_back(claim: Claim) -> End:
    """Build the end that returns a job to its queue, uncharged."""
    return claim.end("back", {"due": claim.due})


def broken(claim: Claim, exc: BaseException) -> End:
    """Build a minimal end for a job that raised in the engine's own steps."""
    details = {"reason": "failed", "error": describe(exc), "tries": claim.tries + 1}
    return claim.end("dead", {**details, "name": "<unknown>", "unique": claim.unique})


def _is(exc: BaseException, *kinds: type[BaseException]) -> bool:
    # `isinstance` would ask the object, and its `__class__` may raise.
    return issubclass(type(exc), kinds)


def _delay_ms(delay_s: float) -> int:
    """Bound a delay: a job may raise Retry with any, but a score must fit into Redis's numbers."""
    return round(min(max(delay_s, 0.0), MAX_DELAY_S) * 1000)
