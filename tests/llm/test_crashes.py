"""Kills workers at every named point of a batch: nothing is lost, each request has one answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.llm import CREATE, outcomes, settings_for, submit
from tests.support.llm_worker import die_at
from tests.support.providers import FakeProvider, fake_provider
from tests.support.queues import open_queue, stores_of
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import JobQueue
from worker.llm.grouping import Group, most_parts

pytestmark = pytest.mark.faults

REQUESTS = 120
# In the order in which a batch reaches them. `unconfirmed` follows `submitting`, because the next
# worker looks up the submission that it finds there.
POINTS = {
    "openai": (
        "sealed",
        "uploading",
        "uploaded",
        "submitting",
        "unconfirmed",
        "posted",
        "submitted",
        "fetching",
        "fetched",
        "answered",
        "ended",
    ),
    "anthropic": ("sealed", "submitting", "unconfirmed", "posted", "fetching", "answered", "ended"),
}


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        yield fake


@pytest.mark.timeout(600)
@pytest.mark.parametrize("provider", POINTS)
async def test_a_worker_killed_at_any_point_of_a_batch_loses_nothing(
    private_valkey_url: str, fake: FakeProvider, provider: str
) -> None:
    # The job becomes a dead letter after too many worker deaths; the flush of the cron job
    # rescues the batch.
    overrides = {
        "worker_lease_s": 1,
        "llm_unconfirmed_wait_s": 0.3,
        "llm_batch_cron": "* * * * * *",
    }
    settings = settings_for(private_valkey_url, fake, **overrides)
    raw = settings.model_dump(mode="json", exclude_unset=True)
    raw |= {"openai_api_key": "k", "anthropic_api_key": "k"}
    async with open_queue(settings) as queue:
        ids = await submit(queue, provider, *(f"q{n}" for n in range(REQUESTS)))
        for point in POINTS[provider]:
            await die_at(point, raw)
        async with running_worker(settings):
            assert await outcomes(queue, ids) == [f"echo: q{n}" for n in range(REQUESTS)]
        (shown,) = await queue.llm.batches.list()
        usage = await stores_of(queue).batches.usage(Group(provider, shown["endpoint"], "m"))
    # Each answer was counted once, and the provider saw each request once.
    assert shown["state"] == "done"
    assert (shown["succeeded"], shown["failed"], shown["moved"]) == (REQUESTS, 0, 0)
    assert usage["succeeded"] == REQUESTS
    assert [len(items) for items in fake.report()["batches"].values()] == [REQUESTS]
    assert fake.calls(CREATE[provider]) == 1
    # Two deaths were ambiguous: before the POST (sent after the lookup), and after it (adopted).
    assert shown["ambiguous"] == 2


@pytest.mark.timeout(600)
@pytest.mark.parametrize("provider", POINTS)
async def test_a_worker_killed_during_a_split_loses_and_doubles_nothing(
    private_valkey_url: str, fake: FakeProvider, provider: str
) -> None:
    overrides = {
        "worker_lease_s": 1,
        "llm_unconfirmed_wait_s": 0.3,
        "llm_batch_cron": "* * * * * *",
    }
    settings = settings_for(private_valkey_url, fake, **overrides)
    raw = settings.model_dump(mode="json", exclude_unset=True)
    raw |= {"openai_api_key": "k", "anthropic_api_key": "k"}
    texts = [f"q{n}" for n in range(15)]
    texts.insert(5, "please poison")
    async with open_queue(settings) as queue:
        ids = await submit(queue, provider, *texts)
        for point in ("splitting", "split", "splitting", "posted"):
            await die_at(point, raw)
        async with running_worker(settings):
            got = await outcomes(queue, ids)
            shown = await eventually(lambda: all_ended(queue))
    assert got.pop(5) == "error invalid_request"
    assert got == [f"echo: q{n}" for n in range(15)]
    assert sum(row["failed"] for row in shown) == 1
    assert sum(row["succeeded"] for row in shown) == 15
    # No request was answered by two batches: each is in one batch that was not refused.
    report = fake.report()
    taken = [
        id_ for batch, ids in report["batches"].items() for id_ in ids if is_done(report, batch)
    ]
    assert len(taken) == len({id_.partition("-")[0] for id_ in taken}) == 15
    assert len(shown) <= most_parts(16)


def is_done(report: dict[str, Any], batch: str) -> bool:
    return report["status"][batch] in {"completed", "ended"}


async def all_ended(queue: JobQueue) -> list[dict[str, Any]] | None:
    shown = await queue.llm.batches.list(limit=500)
    return shown if all(row["state"] in {"done", "failed"} for row in shown) else None
