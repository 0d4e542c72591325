"""
Carries the traces of callers into their jobs, by OpenTelemetry's API.

A process that has set no tracer provider makes no spans, and imports nothing of it.
Names and attributes follow the semantic conventions for messaging. Spans show no
arguments and no texts of errors. What a span processor raises is dropped: the job
is stored or has run, and would be so twice.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

_SYSTEM = "letta_redis"
# W3C allows vendors more, which one job need not carry.
_MOST_STATE = 512
_NOTHING: AbstractContextManager[None] = contextlib.nullcontext()


def is_on() -> bool:
    """Whether this process has set a tracer provider, which it cannot do without the import."""
    trace = sys.modules.get("opentelemetry.trace")
    return trace is not None and not isinstance(
        trace.get_tracer_provider(), trace.ProxyTracerProvider
    )


def carried() -> dict[str, str]:
    """Return the current span as W3C headers (`traceparent`, `tracestate`), or {} without one."""
    if not is_on():
        return {}
    from opentelemetry.trace.propagation.tracecontext import (
        TraceContextTextMapPropagator,
    )

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    if len(carrier.get("tracestate", "")) > _MOST_STATE:
        del carrier["tracestate"]
    return carrier


def sending(queue: str, job_id: str) -> AbstractContextManager[Any]:
    """A span around the call that stores a job."""
    if not is_on():
        return _NOTHING
    return _span("send", queue, "PRODUCER", {"messaging.message.id": job_id})


def sending_many(count: int) -> AbstractContextManager[Any]:
    """A span around the call that stores so many jobs, of any queues."""
    if not is_on():
        return _NOTHING
    return _span("send", None, "PRODUCER", {"messaging.batch.message_count": count})


def processing(
    queue: str,
    job_id: str,
    *,
    task: str,
    tries: int,
    carrier: Any,
    no_failures: tuple[type[BaseException], ...],
) -> AbstractContextManager[Any]:
    """A span around one run of a job, in the trace that its body carries, if it can be read."""
    attributes = {
        "messaging.message.id": job_id,
        "letta_redis.task": task,
        "letta_redis.try": tries,
    }
    return _span(
        "process", queue, "CONSUMER", attributes, parent=_context(carrier), no_failures=no_failures
    )


def _context(carrier: Any) -> Any:
    from opentelemetry.trace.propagation.tracecontext import (
        TraceContextTextMapPropagator,
    )

    texts = carrier if isinstance(carrier, Mapping) else {}
    texts = {key: value for key, value in texts.items() if type(key) is type(value) is str}
    return TraceContextTextMapPropagator().extract(texts)


@contextlib.contextmanager
def _span(
    operation: str,
    queue: str | None,
    kind: str,
    attributes: dict[str, Any],
    *,
    parent: Any = None,
    no_failures: tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
    from opentelemetry import trace

    span: trace.Span = trace.INVALID_SPAN
    with contextlib.suppress(Exception):
        span = trace.get_tracer(_SYSTEM).start_span(
            operation if queue is None else f"{operation} {queue}",
            context=parent,
            kind=trace.SpanKind[kind],
            attributes={
                "messaging.system": _SYSTEM,
                "messaging.operation.name": operation,
                "messaging.operation.type": operation,
                **({} if queue is None else {"messaging.destination.name": queue}),
                **attributes,
            },
        )
    try:
        with trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield
    except BaseException as exc:
        # Its text may hold what nobody else may see. `isinstance` would ask the object.
        if not issubclass(type(exc), no_failures):
            span.set_attribute("error.type", type(exc).__qualname__)
            span.set_status(trace.Status(trace.StatusCode.ERROR))
        raise
    finally:
        with contextlib.suppress(Exception):
            span.end()
