"""Runs jobs in a process that has set a tracer provider; prints its spans as JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from arq.worker import Retry, func
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cache.connection.pool import PoolOptions, open_pool
from cache.encoding import codec
from tests.support.engine import burst
from tests.support.queues import queue_of
from worker import call

PREFIX = "traced:"


class Broken(SpanProcessor):
    """Raises for the spans of the jobs `at_start` and `at_end`."""

    def on_start(self, span: Any, parent_context: Any = None) -> None:  # noqa: ARG002
        self._look(span, "at_start")

    def on_end(self, span: Any) -> None:
        self._look(span, "at_end")

    def _look(self, span: Any, job_id: str) -> None:
        if span.attributes.get("messaging.message.id") == job_id:
            raise RuntimeError("this processor is broken")


async def inside(ctx: dict[str, Any], *_: Any) -> None:
    with trace.get_tracer("test").start_as_current_span("inside"):
        pass
    trace.get_tracer("test").start_span("ran", attributes={"job": ctx["job_id"]}).end()


async def fails(ctx: dict[str, Any]) -> None:
    raise ValueError("hunter2")


async def asks_again(ctx: dict[str, Any]) -> None:
    if ctx["job_try"] == 1:
        raise Retry(defer=0)


async def main(url: str) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    provider.add_span_processor(Broken())
    trace.set_tracer_provider(provider)
    async with open_pool(url, PoolOptions(), name="traced") as client:
        queue = queue_of(client, PREFIX)
        with trace.get_tracer("test").start_as_current_span("request"):
            await queue.enqueue("inside", job_id="first", then=call("inside", job_id="then"))
            await queue.enqueue_many([call("fails", job_id="fails")])
            await queue.send_webhook(
                "https://one.example/hook", {}, event_type="a", webhook_id="hook"
            )
            for urgent in (False, True):
                body = {"model": "m", "messages": [{"role": "user", "content": f"{urgent}"}]}
                more: Any = {"provider": "openai", "endpoint": "/v1/chat/completions"}
                await queue.submit_llm_request(body, urgent=urgent, **more)
        await queue.enqueue("inside", job_id="alone")
        stored = [
            codec.decode(await client.get(key)) for key in await client.keys(f"{PREFIX}job:*")
        ]
        # Whatever is stored as a trace, the job runs.
        body = await client.get(f"{PREFIX}job:alone")
        await client.set(f"{PREFIX}job:alone", body.replace(b"00-", b"zz-"))
        await queue.enqueue("asks_again", job_id="again")
        for broken in ("at_start", "at_end"):
            await queue.enqueue("inside", job_id=broken)
        functions = [func(inside), func(fails, max_tries=1), func(asks_again)]
        await burst(client, PREFIX, functions)
    found = [
        {
            "name": span.name,
            "kind": span.kind.name,
            "id": f"{span.context.span_id:016x}",
            "trace": f"{span.context.trace_id:032x}",
            "parent": span.parent and f"{span.parent.span_id:016x}",
            "status": span.status.status_code.name,
            "attributes": dict(span.attributes or {}),
            "text": span.to_json(),
        }
        for span in spans.get_finished_spans()
    ]
    traced = {job["f"]: "trace" in job.get("o", {}) for job in stored}
    sys.stdout.write(json.dumps({"spans": found, "traced": traced}) + "\n")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
