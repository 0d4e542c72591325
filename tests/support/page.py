"""Fills a queue with something of everything that the operators' page shows, and reads its HTML."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

import pytest
from arq.worker import func

from tests.support.engine import burst
from tests.support.queues import queue_of
from worker import JobQueue, Priority, call
from worker.keys import EngineKeys, QueueKeys
from worker.queue.bulk import Bulk

# What an attacker would like a browser to obey, and a reader to overlook.
HOSTILE = "<script>alert('x')</script>\"'><img src=x onerror=alert(1)>\x1b[2J\u202e\x00{{ 7*7 }}"
FORM = "application/x-www-form-urlencoded"


async def quick(ctx: dict[str, Any], *args: Any, **kwargs: Any) -> None: ...


async def fails(ctx: dict[str, Any]) -> None:
    raise ValueError("as asked")


async def fill(client: Any, prefix: str) -> JobQueue:
    """Jobs in every state, dead letters, workers, pauses, webhooks, batches, history, audit."""
    queue = queue_of(client, prefix)
    keys = QueueKeys(prefix)
    for n in range(3):
        await queue.enqueue("quick", job_id=f"quick-{n}")
    await queue.enqueue("fails", job_id="dead-one")
    await burst(client, prefix, [func(quick, name="quick"), func(fails, name="fails", max_tries=1)])
    await client.hset(keys.dead_job("dead-one"), "error", f"{HOSTILE}\n" + "x" * 300_000)
    await queue.enqueue("quick", HOSTILE, key=HOSTILE, job_id="waits", priority=Priority.LOW)
    await queue.enqueue("quick", job_id="later", delay_s=3600)
    # Stock arq's clients take any id.
    await client.zadd(keys.queue(Priority.DEFAULT), {HOSTILE: 1})
    await client.set(keys.job(HOSTILE), b"not a body")
    await queue.jobs.schedule("nightly", call("quick"), cron="0 3 * * *")
    await queue.jobs.schedule("often", call("quick"), every_s=60)
    await queue.jobs.switches.off("often")
    await client.hset(EngineKeys(keys).cron, mapping={"cron:tidy": 1_790_000_000_000, HOSTILE: 1})
    await queue.jobs.switches.off("cron:tidy")
    await queue.jobs.pauses.pause(function="paused_function")
    await queue.jobs.pauses.pause(priority=Priority.LOW)
    url = "https://one.example/hook?a=1&b=%3Cscript%3E"
    await queue.send_webhook(url, {"n": 1}, event_type="test.event", webhook_id="hook-one")
    await queue.webhooks.disable("https://two.example/hook")
    await queue.submit_llm_request(
        {"model": "m", "messages": [{"role": "user", "content": "hello"}]},
        provider="openai",
        endpoint="/v1/chat/completions",
    )
    await queue.jobs.audit.record(HOSTILE, "jobs/cancel", HOSTILE, HOSTILE * 100)
    await add_workers(client, keys, 2)
    return queue


async def add_workers(client: Any, keys: QueueKeys, count: int) -> None:
    """The heartbeats of workers that run nowhere."""
    async with client.pipeline(transaction=False) as pipe:
        for n in range(count):
            beat = {"worker_id": f"worker-{n}", "host": f"host-{n}", "pid": n, "draining": n == 1}
            counts = dict.fromkeys(("running", "max_jobs", "completed", "failed", "retried"), n)
            pipe.zadd(keys.workers, {f"worker-{n}": time.time() * 1000 + 600_000})
            pipe.set(
                keys.worker(f"worker-{n}"),
                json.dumps({**beat, **counts, "started": time.time()}),
                ex=600,
            )
        await pipe.execute()


def take_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a change looks at 200 jobs, and a press of the page's button takes one step."""
    defaults = Bulk.step.__kwdefaults__
    assert defaults is not None
    monkeypatch.setitem(defaults, "limit_s", 0.0)
    monkeypatch.setattr("worker.web.page.many.PRESS_S", 0.0)


@dataclass
class Form:
    """A form as a browser would send it."""

    action: str
    method: str
    fields: dict[str, str] = field(default_factory=dict)


class Seen(HTMLParser):
    """The forms, links and heading of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.links: dict[str, str] = {}
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self._link = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.attributes |= set(found)
        if tag == "form":
            self.forms.append(Form(found["action"], found.get("method", "get")))
        elif tag == "input" and self.forms:
            self.forms[-1].fields[found.get("name", "")] = found.get("value", "")
        elif tag == "a":
            self._link = found["href"]

    def handle_data(self, data: str) -> None:
        if self._link:
            self.links[data.strip()] = self._link
            self._link = ""

    def form(self, action: str) -> Form:
        return next(form for form in self.forms if form.action == action)
