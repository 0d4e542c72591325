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

from examples.running import run, serving
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


async def main() -> None:
    receiver = Receiver()
    async with serving(receiver.app) as url, open_queue() as queue:
        # The id makes sending again safe: the receiver gets one webhook.
        for _ in range(2):
            webhook_id = await queue.send_webhook(
                f"{url}/hooks",
                {"run_id": "run-1", "status": "completed"},
                event_type="run.completed",
                webhook_id="run-1:completed",
            )
        async with asyncio.timeout(DEADLINE_S):
            print("received and verified:", await receiver.events.get())
            # The worker records the attempt after the receiver's response.
            while (delivery := await queue.delivery(webhook_id)).ended_at is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        print(f"{webhook_id} is {delivery.state}")
        print("attempts:", [attempt.status for attempt in delivery.attempts])


if __name__ == "__main__":
    run(
        main,
        webhook_secret=SECRET,
        # Without it, webhooks reach public addresses only.
        webhook_allow_cidrs="127.0.0.0/8",
        webhook_retry_base_s=0.1,
    )
