"""
Sends a signed webhook to an endpoint that fails twice, and shows the recorded attempts.

    .venv/bin/python -m examples.webhooks
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from typing import Any

from standardwebhooks.webhooks import Webhook
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from examples.running import report, reported, run, serving
from letta_redis import open_queue

# LETTA_WEBHOOK_SECRET in production; the receiver has the same one.
SECRET = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
FAILURES = 2
DEADLINE_S = 60.0


class Receiver:
    """A receiver that fails its first requests and then checks the signature."""

    def __init__(self) -> None:
        self.requests = 0
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.app = Starlette(routes=[Route("/hooks", self.receive, methods=["POST"])])

    async def receive(self, request: Request) -> Response:
        self.requests += 1
        if self.requests <= FAILURES:
            return Response(status_code=503)
        event = Webhook(SECRET).verify(await request.body(), dict(request.headers))
        self.events.put_nowait(event)
        return Response(status_code=204)


async def delivery_ended(_ctx: dict[str, Any], delivery: dict[str, Any]) -> None:
    """Runs in a worker when the delivery has ended, whatever came of it."""
    statuses = [attempt["status"] for attempt in delivery["attempts"]]
    await report(f"{delivery['id']} is {delivery['state']}, attempts: {statuses}")


async def main() -> None:
    receiver = Receiver()
    async with serving(receiver.app) as url, open_queue() as queue:
        # The id makes sending again safe: the receiver gets one webhook.
        for _ in range(2):
            await queue.send_webhook(
                f"{url}/hooks",
                {"run_id": "run-1", "status": "completed"},
                event_type="run.completed",
                webhook_id="run-1:completed",
                on_end="delivery_ended",
            )
        async with asyncio.timeout(DEADLINE_S):
            print("received and verified:", await receiver.events.get())
            print(await reported.get())


if __name__ == "__main__":
    run(
        main,
        worker_functions="examples.webhooks:delivery_ended",
        webhook_secret=SECRET,
        # Without it, webhooks reach public addresses only.
        webhook_allow_cidrs="127.0.0.0/8",
        webhook_retry_base_s=0.1,
    )
