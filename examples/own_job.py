"""
Defines a job: `Transient` retries it, `Permanent` makes it a dead letter at once.

    .venv/bin/python -m examples.own_job
"""

from __future__ import annotations

import asyncio
from typing import Any

from examples.running import run
from letta_redis import JobFailed, Permanent, Priority, Transient, open_queue


async def charge_card(ctx: dict[str, Any], order_id: str, *, card: str) -> str:
    """
    Charge a card. LETTA_WORKER_FUNCTIONS names the job; its first argument is arq's `ctx`.

    A job may run more than once, so send `ctx["job_id"]` to the payment service
    as the idempotency key.
    """
    if card == "expired":
        raise Permanent("the card has expired")
    await asyncio.sleep(0)  # call the payment service here
    if ctx["job_try"] < 3:
        raise Transient("the payment service is busy")
    return f"{order_id} is paid, in try {ctx['job_try']}"


async def main() -> None:
    async with open_queue() as queue:
        # A second enqueue with the same job_id stores nothing while the first one is open.
        good = await queue.enqueue(
            "charge_card", "order-1", card="visa", job_id="charge:order-1", priority=Priority.HIGH
        )
        again = await queue.enqueue("charge_card", "order-1", card="visa", job_id="charge:order-1")
        bad = await queue.enqueue("charge_card", "order-2", card="expired")
        print(f"stored twice: {again.is_new}")

        print(await good.result(timeout_s=60))
        try:
            await bad.result(timeout_s=60)
        except JobFailed as exc:
            print(f"order-2 failed with {exc}")
        for letter in await queue.dead.list():
            # After the cause is fixed, `letta-workers dead retry ID` runs it again.
            print(f"dead letter: {letter.name}, {letter.reason} after {letter.tries} try")


if __name__ == "__main__":
    run(main, worker_functions="examples.own_job:charge_card", worker_retry_base_s=0.1)
