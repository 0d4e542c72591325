"""
Tests batches that were adopted by time and size alone: Anthropic's list shows no owner.

Two of our batches may adopt each other's submission. Their results show it; until then neither
may be sent again or canceled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from settings import Settings
from tests.support.llm import CREATE, ENDPOINT, body, outcome, settings_for
from tests.support.providers import FakeProvider, fake_provider
from tests.support.queues import open_queue, stores_of
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import JobQueue

pytestmark = pytest.mark.integration

NEVER = 1_000_000
LIST = "GET /anthropic/v1/messages/batches"


@pytest.fixture
def fake() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        fake.set(polls=NEVER)
        yield fake


@pytest.fixture
def settings(private_valkey_url: str, fake: FakeProvider) -> Settings:
    return settings_for(private_valkey_url, fake)


@asynccontextmanager
async def two_submitted(settings: Settings) -> AsyncIterator[tuple[JobQueue, list[str], list[str]]]:
    """A queue, its two requests, and their batches (one per model) at the provider."""
    async with open_queue(settings) as queue:
        async with running_worker(settings):
            ids = [
                await queue.submit_llm_request(
                    body("anthropic", model, model),
                    provider="anthropic",
                    endpoint=ENDPOINT["anthropic"],
                )
                for model in ("x", "y")
            ]
            await eventually(lambda: at_the_provider(queue))
        batches = [
            (
                await stores_of(queue).client.hget(stores_of(queue).keys.llm_request(i), "batch")
            ).decode()
            for i in ids
        ]
        yield queue, ids, batches


async def at_the_provider(queue: JobQueue) -> bool:
    shown = await queue.llm.batches.list()
    return len(shown) == 2 and all(row["state"] == "submitted" for row in shown)


async def guess(queue: JobQueue, batch: str, remote: bytes) -> None:
    row = {"provider_id": remote, "adopted": 1, "guess": 1}
    await stores_of(queue).client.hset(stores_of(queue).keys.llm_batch(batch), mapping=row)


async def remotes(queue: JobQueue, batches: list[str]) -> list[bytes]:
    rows = [
        await stores_of(queue).client.hget(stores_of(queue).keys.llm_batch(id_), "provider_id")
        for id_ in batches
    ]
    return list(rows)


async def test_two_swapped_guesses_are_corrected_without_a_new_submission(
    settings: Settings, fake: FakeProvider
) -> None:
    async with two_submitted(settings) as (queue, ids, batches):
        first, second = await remotes(queue, batches)
        await guess(queue, batches[0], second)
        await guess(queue, batches[1], first)
        fake.set(polls=0)
        async with running_worker(settings):
            assert [await outcome(queue, id_) for id_ in ids] == ["echo: x", "echo: y"]
        assert await remotes(queue, batches) == [first, second]
    assert fake.calls(CREATE["anthropic"]) == 2


async def test_a_match_that_another_batch_guessed_is_waited_for(
    settings: Settings, fake: FakeProvider
) -> None:
    async with two_submitted(settings) as (queue, ids, batches):
        first, second = await remotes(queue, batches)
        await guess(queue, batches[1], first)
        # As if the run had died after the POST. Its own submission is held by the other batch.
        row = {"state": "submitting", "provider_id": "", "refused": second}
        await stores_of(queue).client.hset(stores_of(queue).keys.llm_batch(batches[0]), mapping=row)
        async with running_worker(settings):
            before = fake.calls(LIST)
            # With two lists per lookup, these lookups take longer than the wait.
            await eventually(lambda: _is(fake.calls(LIST) >= before + 12))
            fake.set(polls=0)
            assert [await outcome(queue, id_) for id_ in ids] == ["echo: x", "echo: y"]
        assert await remotes(queue, batches) == [first, second]
    assert fake.calls(CREATE["anthropic"]) == 2


async def test_a_guessed_batch_is_not_canceled_when_nobody_waits(
    settings: Settings, fake: FakeProvider
) -> None:
    async with two_submitted(settings) as (queue, ids, batches):
        first, _ = await remotes(queue, batches)
        await guess(queue, batches[1], first)
        assert await queue.llm.cancel(ids[1])
        before = looks(fake)
        async with running_worker(settings):
            # Three polls by each of the two would be enough to cancel it.
            await eventually(lambda: _is(looks(fake) >= before + 6))
            fake.set(polls=0)
            assert await outcome(queue, ids[0]) == "echo: x"
    assert not fake.calls("POST /anthropic/v1/messages/batches/{id}/cancel")


def looks(fake: FakeProvider) -> int:
    return fake.calls(LIST + "/{id}")


async def _is(truth: bool) -> bool:
    return truth
