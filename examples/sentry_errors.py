"""
Reports what jobs raise to Sentry, by a decorator. This example prints instead of sending.

    .venv/bin/python -m examples.sentry_errors
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from examples.running import run
from letta_redis import JobFailed, Transient, open_queue

T = TypeVar("T")


class Shown(Transport):
    """Stands for the network. A service of yours leaves `transport` out and gives its own DSN."""

    def capture_envelope(self, envelope: Envelope) -> None:
        event = envelope.get_event() or {}
        raised = event["exception"]["values"][-1]
        print(f"Sentry gets {raised['type']} of {event['tags']}", flush=True)


# Each worker imports this module once, after it was forked.
sentry_sdk.init(
    "https://key@sentry.example/1",
    transport=Shown,
    include_local_variables=False,
    # The SDK would import every installed package that it has an integration for.
    auto_enabling_integrations=False,
)


def reported(job: Callable[..., Awaitable[T]]) -> Callable[..., Awaitable[T]]:
    """Report what a job raises, but for what it wants to be retried for."""

    @functools.wraps(job)
    async def run_job(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> T:
        with sentry_sdk.isolation_scope() as scope:
            scope.set_tag("task", job.__name__)
            scope.set_tag("job_id", ctx["job_id"])
            try:
                return await job(ctx, *args, **kwargs)
            except Transient:
                raise
            except Exception as exc:
                sentry_sdk.capture_exception(exc)
                raise

    return run_job


@reported
async def ship(ctx: dict[str, Any], order_id: str) -> None:
    if ctx["job_try"] == 1:
        raise Transient("the carrier is busy")
    raise LookupError(f"{order_id} is unknown")


async def main() -> None:
    async with open_queue() as queue:
        job = await queue.enqueue("ship", "order-1", job_id="ship:order-1")
        try:
            await job.result(timeout_s=60)
        except JobFailed as exc:
            print(f"order-1 failed with {exc}")


if __name__ == "__main__":
    run(
        main,
        worker_functions="examples.sentry_errors:ship",
        worker_retry_base_s=0.1,
        worker_max_tries=2,
    )
