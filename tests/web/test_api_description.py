"""The JSON API does what its own description says: schemathesis calls it by that and against it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from arq.worker import func

from tests.support.engine import burst
from tests.support.queues import queue_of
from tests.support.web import CLOSED, TOKEN, bearer, serving
from worker import JobQueue, Priority
from worker.web.site import Site

pytestmark = pytest.mark.integration


async def fails(ctx: dict[str, Any]) -> None:
    raise ValueError("as asked")


async def fill(client: Any, prefix: str) -> JobQueue:
    """A queue with something of everything that the API shows."""
    queue = queue_of(client, prefix)
    await queue.enqueue("fails", job_id="dead-one")
    await burst(client, prefix, [func(fails, name="fails", max_tries=1)])
    await queue.enqueue("waits", 1, key="value", job_id="waiting-one", priority=Priority.LOW)
    await queue.send_webhook("https://one.example/hook", {"n": 1}, event_type="test.event")
    await queue.webhooks.disable("https://two.example/hook")
    await queue.submit_llm_request(
        {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
        provider="openai",
        endpoint="/v1/chat/completions",
    )
    return queue


def findings(url: str) -> list[str]:
    """What schemathesis finds wrong; each call is made in this thread."""
    import schemathesis
    from schemathesis.engine import from_schema
    from schemathesis.engine.events import NonFatalError, ScenarioFinished

    config = schemathesis.Config.from_dict(
        {
            "seed": 1,
            "auth": {"openapi": {"token": {"bearer": TOKEN}}},
            "generation": {"max-examples": 3, "deterministic": True, "no-shrink": True},
            "phases": {
                "coverage": {"unexpected-methods": ["PUT"]},
                "stateful": {"enabled": False},
            },
            "request-timeout": 60,
        }
    )
    schema = schemathesis.openapi.from_url(
        f"{url}/api/openapi.json", config=config, headers=bearer()
    )
    found: list[str] = []
    for event in from_schema(schema).execute():
        if isinstance(event, NonFatalError):
            found.append(str(event.info))
        if isinstance(event, ScenarioFinished):
            for checks in event.recorder.checks.values():
                found += [
                    f"{event.recorder.label}: {check.failure_info.failure}\n{check.failure_info.code_sample}"
                    for check in checks
                    if check.failure_info is not None
                ]
    return found


async def test_every_call_does_what_the_description_says(client: Any, prefix: str) -> None:
    queue = await fill(client, prefix)
    async with serving(Site(queue, CLOSED, show_arguments=True)) as url:
        found = await asyncio.to_thread(findings, url)
    assert not found, "\n".join(found[:5])
