"""
Checks and stores the requests that callers submit.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any

from worker.keys import QueueKeys
from worker.llm.batch_client import require_names
from worker.llm.grouping import LIMITS, Group, LLMRequest, check_request
from worker.llm.options import LLMOptions, flush_rules
from worker.llm.prepared import AGE_FLUSH, PreparedJobs
from worker.llm.requests import NOBODY, Callback, RequestStore
from worker.queue import arguments
from worker.queue.admission import MemoryGuard
from worker.queue.confirmation import Confirmations
from worker.queue.encoder import PreparedJob
from worker.queue.job import reach
from worker.queue.priority import Priority
from worker.queue.staging import steps

# Requests of one script call. More would block the server's other clients.
_CHUNK = 125


def _new_id() -> str:
    return f"req_{os.urandom(16).hex()}"


@lru_cache(maxsize=1024)
def _check_names(provider: Any, endpoint: Any, model: Any) -> None:
    """Most requests have the same names. Only text is hashable for certain, so only text is cached."""
    require_names(provider, endpoint)
    arguments.require_name("body['model']", model, longest=256)


class Submissions:
    """Submits requests through one client."""

    def __init__(
        self,
        keys: QueueKeys,
        requests: RequestStore,
        prepared: PreparedJobs,
        memory: MemoryGuard,
        *,
        confirmations: Confirmations,
        options: LLMOptions,
    ) -> None:
        self._keys = keys
        self._requests = requests
        self._prepared = prepared
        self._memory = memory
        self._confirmations = confirmations
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
        wait_replicas: int | None = None,
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
        caller's id) each time the request ends. `wait_replicas`: as for
        `queue.jobs.enqueue`.

        Raises:
            UnknownProvider, InvalidArgument, PayloadTooLarge, InvalidWebhookURL.
            QueueMemoryFull: the server is over LETTA_QUEUE_MAX_MEMORY_SHARE.
            NotConfirmed: stored, but replicas are missing, and LETTA_QUEUE_WAIT_REQUIRED is set.
        """
        request = self._checked(body, provider, endpoint)
        deadline_ms = None if deadline is None else arguments.unix_ms("deadline", deadline)
        callback = self._callback_for(webhook_url)
        await self._memory.admit()
        if urgent or self._is_near(deadline):
            store = partial(self._submit_urgent, [request], deadline_ms, callback)
        else:
            store = partial(self._submit, [request], deadline_ms, dedupe=dedupe, callback=callback)
        (id_,) = await self._confirmed(store, wait_replicas)
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
        wait_replicas: int | None = None,
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
            store = partial(self._submit_urgent, requests, deadline_ms, callback)
        else:
            store = partial(
                self._submit_groups, requests, deadline_ms, dedupe=dedupe, callback=callback
            )
        return await self._confirmed(store, wait_replicas)

    # -- inside ----------------------------------------------------------------

    async def _confirmed(
        self, store: Callable[[], Awaitable[list[str]]], wait_replicas: int | None
    ) -> list[str]:
        ids, confirmed = await self._confirmations.of(store, wait_replicas)
        self._confirmations.require(confirmed, *ids)
        return ids

    async def _submit_groups(
        self,
        requests: list[LLMRequest],
        deadline_ms: int | None,
        *,
        dedupe: bool,
        callback: Callback,
    ) -> list[str]:
        by_group: dict[Group, list[int]] = {}
        for number, request in enumerate(requests):
            by_group.setdefault(request.group, []).append(number)
        ids = [""] * len(requests)
        for numbers in by_group.values():
            sizes = [len(requests[number].body) for number in numbers]
            for start, stop in steps(sizes, _CHUNK):
                chunk = numbers[start:stop]
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

    def _checked(self, body: Mapping[str, Any], provider: str, endpoint: str) -> LLMRequest:
        model = body.get("model", "-") if isinstance(body, (dict, Mapping)) else "-"
        if type(provider) is type(endpoint) is type(model) is str:
            _check_names(provider, endpoint, model)
        else:
            _check_names.__wrapped__(provider, endpoint, model)
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
        pairs = [(_new_id(), request) for request in requests]
        first, group = pairs[0][0], requests[0].group
        now, later = self._flush_bodies(group)
        return await reach(
            self._requests.submit(
                pairs,
                # Named after the first request, so that a call that is sent again
                # starts no second flush.
                flush_now=PreparedJob(f"llm:full:{first}", now),
                flush_later=PreparedJob(AGE_FLUSH + first, later),
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
        self, requests: list[LLMRequest], deadline_ms: int | None, callback: Callback
    ) -> list[str]:
        ids = []
        for request in requests:
            request_id = _new_id()
            job = self._prepared.single(request_id)
            submitted = self._requests.submit_urgent(
                request_id,
                request,
                job=job,
                job_keys=self._keys.job_keys(job.id, Priority.HIGH),
                deadline_ms=deadline_ms,
                callback=callback,
            )
            ids.append(await reach(submitted))
        return ids

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
