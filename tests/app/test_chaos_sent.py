"""
Counts of what is sent against a ledger: workers are killed while webhooks and LLM requests go out.

The ledger is what receiver, provider and callers have seen. The history of each endpoint and of
each group, and /metrics, must equal it. `make soak SEED= MINUTES=` runs longer.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.forks import Forks, forks
from tests.support.llm import ENDPOINT, body, outcome, settings_for
from tests.support.providers import FakeProvider, fake_provider
from tests.support.queues import open_queue
from tests.support.wait import eventually
from tests.support.web import asking
from worker import JobQueue
from worker.demo.serving import running
from worker.queue.series import OUTCOMES, Counts
from worker.webhooks.limits import endpoint_of

pytestmark = pytest.mark.faults

SEED = int(os.environ.get("SOAK_SEED", "1"))
MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))
WORKERS, CONCURRENCY, ATTEMPTS, TRIES = 2, 8, 3, 2
DELIVERIES = 40 if not MINUTES else int(600 * MINUTES)
REQUESTS = 90 if not MINUTES else int(900 * MINUTES)
KILLS = 4 if not MINUTES else int(30 * MINUTES)
DEADLINE_S = 120 + 180 * MINUTES

PATHS = ("/ok", "/flaky/1", "/status/500")
# What the provider makes of a text, and how a request with it ends.
ENDS = {
    "": "echo",
    "please fail": "error",
    "please overload": "echo",
    "please vanish": "echo",
    "please overload always": "error",
}
# Provider, model, and whether its requests are sent directly: without a batch.
GROUPS = (("openai", "m", False), ("openai", "direct", True), ("anthropic", "m", False))
Group = tuple[str, str, str]


@dataclass
class Sent:
    """What callers were acknowledged, and how that ends for them."""

    deliveries: dict[str, list[str]] = field(default_factory=dict)  # URL -> ids
    requests: dict[Group, dict[str, str]] = field(default_factory=dict)  # id -> expected end


def environment(url: str, fake: FakeProvider) -> dict[str, str]:
    return {
        "LETTA_REDIS_URL": url,
        "LETTA_WORKER_LEASE_S": "1",
        "LETTA_WORKER_LOG_LEVEL": "CRITICAL",
        "LETTA_WORKER_MAX_JOBS": str(CONCURRENCY),
        "LETTA_WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8",
        "LETTA_WEBHOOK_MAX_ATTEMPTS": str(ATTEMPTS),
        "LETTA_WEBHOOK_RETRY_BASE_S": "0.1",
        "LETTA_WEBHOOK_BREAKER_FAILURES": "0",
        "LETTA_OPENAI_BASE_URL": fake.openai_url,
        "LETTA_OPENAI_API_KEY": "k",
        "LETTA_ANTHROPIC_BASE_URL": fake.anthropic_url,
        "LETTA_ANTHROPIC_API_KEY": "k",
        "LETTA_LLM_ALLOW_CIDRS": "127.0.0.0/8",
        "LETTA_LLM_BATCH_MAX_REQUESTS": "10",
        "LETTA_LLM_BATCH_MAX_AGE_S": "0.2",
        "LETTA_LLM_BATCH_CRON": "* * * * * *",
        "LETTA_LLM_POLL_INTERVAL_S": "0.05",
        "LETTA_LLM_UNCONFIRMED_WAIT_S": "0.3",
        "LETTA_LLM_ITEM_MAX_TRIES": str(TRIES),
    }


async def send(queue: JobQueue, receiver: str, rng: random.Random) -> Sent:
    sent = Sent()
    for n in range(DELIVERIES):
        url = f"{receiver}{PATHS[n % len(PATHS)]}"
        id_ = await queue.send_webhook(url, {"n": n}, event_type="test.event")
        sent.deliveries.setdefault(url, []).append(id_)
    for n in range(REQUESTS):
        provider, model, urgent = GROUPS[n % len(GROUPS)]
        # A direct call waits seconds after an overload: one of them is enough.
        doomed = ("", "please fail") if urgent else tuple(ENDS)
        text = "please overload" if n == 1 else rng.choice(doomed)
        id_ = await queue.submit_llm_request(
            body(provider, f"{text} {n}", model),
            provider=provider,
            endpoint=ENDPOINT[provider],
            urgent=urgent,
            dedupe=False,
        )
        group = provider, ENDPOINT[provider], model
        sent.requests.setdefault(group, {})[id_] = ENDS[text]
        if n % 10 == 9 and await queue.llm.cancel(id_):
            sent.requests[group][id_] = "canceled"
    return sent


async def work_off(queue: JobQueue, sent: Sent, workers: Forks, rng: random.Random) -> int:
    """Keep workers up, and kill one after each share of the work, until all has ended; returns how many."""
    deaths, ended = 0, 0
    waiting = [id_ for ids in sent.deliveries.values() for id_ in ids]
    asked = {id_: end for ids in sent.requests.values() for id_, end in ids.items()}
    strikes = [(DELIVERIES + REQUESTS) * (n + 1) // (KILLS + 2) for n in range(KILLS)]
    at_once = asyncio.Semaphore(20)  # each waits on a connection

    async def answer(id_: str) -> str:
        async with at_once:
            return await outcome(queue, id_, DEADLINE_S)

    answers = {id_: asyncio.create_task(answer(id_)) for id_ in asked}

    async def all_ended() -> bool:
        nonlocal deaths, ended
        while len(workers.alive()) < WORKERS:
            workers.start()
        for id_ in waiting[:10]:
            if (await queue.delivery(id_)).state in {"delivered", "dead"}:
                waiting.remove(id_)
                ended += 1
        done = [task for task in answers.values() if task.done()]
        if strikes and ended + len(done) >= strikes[0]:
            workers.kill(rng.choice(workers.alive()))
            deaths += 1
            strikes.pop(0)
        return not waiting and len(done) == len(answers)

    await eventually(all_ended, deadline_s=DEADLINE_S)
    for id_, task in answers.items():
        kind, _, about = task.result().partition(" ")
        assert asked[id_] == (about if about == "canceled" else kind.rstrip(":"))
    # The rest of a job, as its next flush or its end, may still run: it is no part of an answer.
    workers.kill_all()
    return deaths + WORKERS


@asynccontextmanager
async def receiving() -> AsyncIterator[tuple[str, httpx.AsyncClient]]:
    with running("worker.demo.receiver") as url:
        async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
            yield url, client


@pytest.mark.timeout(180 + 240 * MINUTES)
async def test_endpoints_and_groups_equal_the_ledger_of_killed_workers(
    private_valkey_url: str, tmp_path: Path
) -> None:
    rng = random.Random(SEED)
    with fake_provider() as fake:
        settings = settings_for(private_valkey_url, fake)
        async with open_queue(settings) as queue, receiving() as (url, receiver):
            with forks(tmp_path / "log", **environment(private_valkey_url, fake)) as workers:
                sent = await send(queue, url, rng)
                deaths = await work_off(queue, sent, workers, rng)
            assert deaths == KILLS + WORKERS
            seen = (await receiver.get("/seen", params={"brief": "1"})).json()
            metrics = await samples(queue)
            for target, ids in sent.deliveries.items():
                statuses = {id_: [status for _, status in seen.get(id_, [])] for id_ in ids}
                await check_endpoint(queue, target, statuses, deaths)
            batched = Counter(
                custom_id.rpartition("-")[0]
                for items in fake.report()["batches"].values()
                for custom_id in items
            )
            for group, ends in sent.requests.items():
                await check_group(queue, group, ends, batched, metrics)


async def check_endpoint(
    queue: JobQueue, url: str, statuses: Mapping[str, list[int]], deaths: int
) -> None:
    """Compare the counts of one endpoint with what its receiver has answered."""
    (found,) = await queue.webhooks.history(url, since=earlier(), step="minute")
    (hours,) = await queue.webhooks.history(url, since=earlier(), step="hour")
    total = found.total
    assert found.endpoint == endpoint_of(url, None)
    assert total == found.counts == hours.counts
    accepted = {id_ for id_, each in statuses.items() if 200 in each}
    dead = {id_ for id_ in statuses if (await queue.delivery(id_)).state == "dead"}
    # Deaths before the record may use up the attempts of a delivery that was accepted.
    assert statuses.keys() - accepted <= dead
    assert len(dead & accepted) <= total.lapsed
    assert total.completed == len(statuses) - len(dead)
    assert total.dead == len(dead)
    assert total.aborted == total.given_back == total.parked == 0
    # Each attempt that the receiver saw ended, or was interrupted by a death; some of these were not
    # sent yet.
    attempts = sum(map(len, statuses.values()))
    assert total.run.count == total.wait.count
    assert (
        total.run.count <= total.completed + total.retried + total.dead <= total.run.count + deaths
    )
    unsent = total.run.count + total.lapsed - attempts
    assert 0 <= unsent <= deaths * CONCURRENCY
    assert total.lapsed <= deaths * CONCURRENCY


async def check_group(
    queue: JobQueue,
    group: Group,
    ends: Mapping[str, str],
    batched: Counter[str],
    metrics: Mapping[tuple[Any, ...], float],
) -> None:
    """Compare the counts of one group with the callers' answers and the provider's batches."""
    names = dict(zip(("provider", "endpoint", "model"), group, strict=True))
    (found,) = await queue.llm.history.read(**names, since=earlier(), step="minute")
    (hours,) = await queue.llm.history.read(**names, since=earlier(), step="hour")
    total = found.total
    assert total == found.counts == hours.counts
    kinds = Counter(ends.values())
    assert outcomes(total) == outcomes_of(
        completed=kinds["echo"],
        aborted=kinds["canceled"],
        dead=kinds["error"],
        # A request is in one batch of the provider more for each time that it was given back.
        retried=sum(batched[id_] - 1 for id_ in ends if batched[id_]),
    )
    assert total.run.count == total.wait.count == kinds["echo"] + kinds["error"]
    for outcome_, count in outcomes(total).items():
        key = ("letta_llm_request_ends_total", *sorted({**names, "outcome": outcome_}.items()))
        assert metrics.get(key, 0) == count, key
    for kind in ("duration", "queue_time"):
        key = (f"letta_llm_request_{kind}_seconds_count", *sorted(names.items()))
        assert metrics[key] == total.run.count, key


def outcomes(counts: Counts) -> dict[str, int]:
    return {name: getattr(counts, name) for name in OUTCOMES}


def outcomes_of(**counts: int) -> dict[str, int]:
    return {**dict.fromkeys(OUTCOMES, 0), **counts}


def earlier() -> datetime:
    return datetime.now(UTC) - timedelta(hours=20)


async def samples(queue: JobQueue) -> dict[tuple[Any, ...], float]:
    async with asking(queue) as web:
        text = (await web.get("/metrics")).text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
