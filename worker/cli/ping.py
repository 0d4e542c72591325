"""Implements `letta-workers webhooks ping`: send a test event and wait for its outcome."""

from __future__ import annotations

import asyncio

import click

from worker.cli.support import EXIT_FAILED, json_option, show, with_queue
from worker.client import JobQueue
from worker.webhooks.policy import DeliveryState
from worker.webhooks.records import Delivery

_LOOK_S = 0.1


@click.command("ping")
@click.argument("url")
@click.option("--endpoint-id", help="Endpoint id to send it with.")
@click.option("--no-wait", is_flag=True, help="Print its delivery id at once.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0.1, 3600),
    default=30.0,
    show_default=True,
    help="Longest wait for its first attempt, seconds.",
)
@json_option
def webhooks_ping(
    url: str, endpoint_id: str | None, no_wait: bool, timeout_s: float, as_json: bool
) -> None:
    """Send a test event of type `ping` and say how its first attempt ended.

    Exit code 1 unless it was delivered.

    \b
    Examples:
      letta-workers webhooks ping https://example.com/hooks
      letta-workers webhooks ping https://example.com/hooks --no-wait
    """

    async def ping(queue: JobQueue) -> Delivery | str:
        id_ = await queue.webhooks.ping(url, endpoint_id=endpoint_id)
        return id_ if no_wait else await _attempted(queue, id_, timeout_s)

    found = with_queue(ping)
    if isinstance(found, str):
        show({"id": found}, as_json, lambda: [found])
        return
    show(found.to_dict(), as_json, lambda: _outcome(found, timeout_s))
    if found.state is not DeliveryState.DELIVERED:
        raise SystemExit(EXIT_FAILED)


async def _attempted(queue: JobQueue, id_: str, timeout_s: float) -> Delivery:
    """The delivery after its first attempt or its end, or as it is after the timeout."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout_s
    while True:
        found = await queue.delivery(id_)
        is_over = found.ended_at is not None or found.state is DeliveryState.WAITING
        if is_over or loop.time() >= end:
            return found
        await asyncio.sleep(_LOOK_S)


def _outcome(found: Delivery, timeout_s: float) -> list[str]:
    last = found.attempts[-1] if found.attempts else None
    if found.state is DeliveryState.DELIVERED and last is not None:
        return [f"delivered: status {last.status} in {last.ms} ms  ({found.id})"]
    if last is None and found.ended_at is None:
        return [
            f"no attempt within {timeout_s:g} s: is a worker running, and what does "
            f"`webhooks endpoint` say?  ({found.id})"
        ]
    head = f"not delivered: {found.state}  status={found.status}  error={found.error or '-'}"
    rows = [f"{head}  ({found.id})"]
    if found.remedy:
        rows.append(f"remedy: {found.remedy}")
    if found.next_attempt_at is not None:
        rows.append(f"next attempt: {found.next_attempt_at.isoformat()}")
    return rows
