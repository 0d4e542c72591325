"""Prepares a claim for its run: decodes it, checks abort and expiry, finds its function."""

from __future__ import annotations

from collections.abc import Callable

from arq.jobs import DeserializationError
from arq.worker import JobExecutionFailed

from cache.logs import get_logger
from worker.engine.failures import SafeLog, describe
from worker.engine.outcome import Body, Decider
from worker.engine.records import Claim, End
from worker.engine.settings import RunSettings
from worker.engine.validate import check_options, read_fields


class Preparer:
    """Turns a claim into a `Body` to run, or into its end. `now_ms` is the server's clock."""

    def __init__(self, settings: RunSettings, decider: Decider, now_ms: Callable[[], int]) -> None:
        self._settings = settings
        self._decider = decider
        self._now_ms = now_ms
        self._log = SafeLog(get_logger(__name__).bind())

    def prepare(self, claim: Claim) -> Body | tuple[End, str]:
        if claim.fault:
            unread = Body("<unknown>", (), {}, 0, claim.tries + 1, {})
            return self._decider.dead(claim, unread, JobExecutionFailed(claim.fault), "undecodable")
        if claim.body is None:
            # The body's TTL, which a stock client set, has passed.
            lost = Body("<unknown>", (), {}, 0, claim.tries + 1, {})
            return self._decider.dead(claim, lost, JobExecutionFailed("job expired"), "expired")
        try:
            body = self._decode(claim, claim.body)
        except BaseException as exc:  # noqa: BLE001  (a user's deserializer may raise anything)
            unread = Body("<unknown>", (), {}, 0, claim.tries + 1, {})
            error = JobExecutionFailed(
                f"unable to deserialize job: {describe(exc)}; give the worker the job_deserializer of the "
                "client that enqueued it (pickle is never read by default)"
            )
            told = DeserializationError("unable to deserialize job")
            return self._decider.dead(claim, unread, error, "undecodable", result=told)
        if self._settings.allow_abort_jobs and _is_aborted(claim, body):
            self._log.info("job.aborted", job_id=claim.job_id, task=body.name, started=False)
            return self._decider.aborted(claim, body, self._now_ms())
        expires = body.options.get("x")
        if expires is not None and self._now_ms() > expires:
            return self._decider.dead(claim, body, JobExecutionFailed("job expired"), "expired")
        return self._find(claim, body)

    def _decode(self, claim: Claim, data: bytes) -> Body:
        fields = self._settings.deserializer(data)
        given_tries, name, args, kwargs, enqueued_ms = read_fields(fields)
        tries = claim.tries + 1
        if given_tries and given_tries > tries:
            tries = given_tries  # as in arq: a higher number that was given at the enqueue counts
        options = fields.get("o") or {}
        if name in self._settings.functions:
            claim.function = name
        if options:
            check_options(options)
            unique = options.get("u")
            claim.unique = unique and self._settings.unique_prefix + unique
        return Body(name, args, kwargs, enqueued_ms, tries, options)

    def _find(self, claim: Claim, body: Body) -> Body | tuple[End, str]:
        function = self._settings.functions.get(body.name)
        if function is None:
            error = JobExecutionFailed(f"function {body.name!r} not found")
            details = self._decider.result(body, claim, False, error, self._now_ms())
            details |= {
                "most": int(self._settings.park_s * 1000),
                "reason": "unknown",
                "error": str(error),
                "tries": claim.tries,
                "name": body.name,
                "unique": claim.unique,
            }
            return claim.end("park", details), "parked"
        body.function = function
        limit = self._decider.max_tries(function)
        if limit is not None and body.tries > limit:
            error = JobExecutionFailed(f"max {limit} retries exceeded")
            return self._decider.dead(claim, body, error, "exhausted")
        return body


def _is_aborted(claim: Claim, body: Body) -> bool:
    # A mark older than this job was meant for an earlier job with the same id.
    # Due time 1: stock arq moves a deferred job there before it sets the mark.
    return claim.due == "1" or (claim.mark_ms is not None and claim.mark_ms >= body.enqueued_ms)
