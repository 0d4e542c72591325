"""
Encodes jobs: the body that the queue stores, and the options that a job carries in it.

A job's own options travel in its body under `o` (stock arq reads past it):
u: unique key (a whole Redis key), us: its scope, x: expiry (Unix ms),
then: the job that follows {f, a, k, q, id, delay, xs, o}, g: part of a gathering {id, i},
trace: the caller's span as W3C headers.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cache.encoding import codec
from cache.errors import NotEncodable
from worker import tracing
from worker.errors import NotSerializable, PayloadTooLarge
from worker.queue import arguments
from worker.queue.calls import Call
from worker.queue.store import job_body


def now_ms() -> int:
    return int(time.time() * 1000)


def new_id() -> str:
    """A random id: 32 hex digits. `uuid4` would take five times as long, at each enqueue."""
    return os.urandom(16).hex()


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """A job that another feature's script stores: its id and encoded body."""

    id: str
    body: bytes


class JobEncoder:
    """Checks and encodes jobs; a body has at most `max_bytes`."""

    def __init__(self, *, max_bytes: int) -> None:
        self._max_bytes = max_bytes

    def encode(
        self,
        name: str,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        options: Mapping[str, Any] | None = None,
        traced: bool = True,
    ) -> bytes:
        """
        The body of a job that is enqueued now. The caller has checked its name.

        `traced`: whether it belongs to the trace of the caller alone.

        Raises:
            NotSerializable: an argument would not arrive as given; the message names it.
            PayloadTooLarge: over LETTA_QUEUE_MAX_JOB_BYTES.
        """
        trace = tracing.carried() if traced else {}
        if trace:
            options = {**(options or {}), "trace": trace}
        try:
            body = job_body(name, args, kwargs or {}, now_ms=now_ms(), options=options)
        except NotEncodable as exc:
            raise _refusal(name, args, kwargs or {}, exc) from None
        if len(body) > self._max_bytes:
            raise PayloadTooLarge(
                f"job {name!r}", len(body), self._max_bytes, "LETTA_QUEUE_MAX_JOB_BYTES"
            )
        return body

    def encode_around(self, then: Call) -> tuple[bytes, bytes]:
        """The job that follows a gathering, cut where the list of results belongs."""
        mark = uuid.uuid4().bytes
        options = self.options(then.expires_s, then.then)
        body = self.encode(then.name, [mark, *then.args], then.kwargs, options=options)
        head, _, tail = body.partition(codec.encode(mark))
        return head, tail

    def options(self, expires_s: float | None, then: Call | None) -> dict[str, Any]:
        """A job's own options: its expiry, and the job that follows it."""
        options: dict[str, Any] = {}
        if expires_s is not None:
            options["x"] = now_ms() + arguments.delay_ms(expires_s)
        if then is not None:
            priority = arguments.require_call("then", then)
            self.encode(then.name, then.args, then.kwargs)  # a refusal names the job and argument
            options["then"] = {
                "f": then.name,
                "a": list(then.args),
                "k": dict(then.kwargs or {}),
                "q": priority.value,
                "id": then.job_id,
                "delay": arguments.delay_ms(then.delay_s),
                # Its time to expire counts from when it is stored.
                "xs": None if then.expires_s is None else arguments.delay_ms(then.expires_s),
                "o": self.options(None, then.then),
            }
        return options


def _refusal(
    name: str, args: Sequence[Any], kwargs: Mapping[str, Any], exc: NotEncodable
) -> NotSerializable:
    """The error that names the argument which cannot be encoded."""
    given = [(f"argument {number}", value) for number, value in enumerate(args, 1)]
    given += [(f"argument {key!r}", value) for key, value in kwargs.items()]
    for what, value in given:
        try:
            codec.encode_exact(value)
        except NotEncodable as found:
            return NotSerializable(f"{what}{found.path} of {name!r} {found.problem}")
    return NotSerializable(f"the arguments of {name!r}: {exc}")
