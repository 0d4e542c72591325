"""Tests that one caller's cancellations, answers and endpoints do not affect another's."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.llm import ENDPOINT, PROVIDERS, body, outcome, settings_for, submit
from tests.support.options import endpoint_limits, options_of, retry_schedule
from tests.support.providers import FakeProvider, fake_provider
from tests.support.queues import open_queue, queue_of, stores_of
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import JobQueue, Priority
from worker.llm.answers import Answer
from worker.llm.grouping import Group
from worker.webhooks.attempts import Attempt, ClaimedDelivery, EndedUnsent
from worker.webhooks.policy import DeliveryState, Outcome, decide

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def one_fake() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        yield fake


@pytest.fixture
def fake(one_fake: FakeProvider) -> FakeProvider:
    one_fake.reset()
    return one_fake


@pytest.fixture
def queue(client: Any, prefix: str) -> JobQueue:
    return queue_of(client, prefix, options_of(llm_batch_max_age_s=3600))


# -- equal requests that callers share ---------------------------------------------


async def test_canceling_twice_counts_once(queue: JobQueue) -> None:
    (first,) = await submit(queue, "openai", "same")
    (second,) = await submit(queue, "openai", "same")
    assert first != second
    assert (await queue.llm.batches.groups())[0]["waiting"]["requests"] == 1
    for _ in range(3):
        assert await queue.llm.cancel(second) is True
    assert await stores_of(queue).requests.is_open(first)
    assert await queue.llm.cancel(first) is True
    assert await outcome(queue, first) == "error canceled"
    assert await outcome(queue, second) == "error canceled"


async def test_the_first_caller_cannot_cancel_for_those_who_joined(queue: JobQueue) -> None:
    ids = await submit(queue, "openai", "same", "same", "same")
    assert len(set(ids)) == 3
    for _ in range(3):
        assert await queue.llm.cancel(ids[0]) is True
    assert await stores_of(queue).requests.is_open(ids[2])


async def test_an_id_that_never_joined_cancels_nothing(queue: JobQueue) -> None:
    (id_,) = await submit(queue, "openai", "same")
    for made_up in (f"{id_}.{'0' * 16}", f"{id_}.x.y", f"{id_}.*", "req_unknown"):
        assert await queue.llm.cancel(made_up) is False
    assert await stores_of(queue).requests.is_open(id_)


async def test_an_operator_ends_a_request_for_all_who_share_it(queue: JobQueue) -> None:
    ids = await submit(queue, "openai", "same", "same")
    assert await queue.llm.cancel(ids[0], everybody=True) is True
    assert [await outcome(queue, id_) for id_ in ids] == ["error canceled"] * 2


async def test_a_retried_request_can_be_canceled_by_its_first_caller(queue: JobQueue) -> None:
    ids = await submit(queue, "openai", "same", "same")
    for id_ in ids:
        assert await queue.llm.cancel(id_)
    job = stores_of(queue).prepared.flush("again", Group("openai", ENDPOINT["openai"], "m"))
    keys = stores_of(queue).keys.job_keys(job.id, Priority.DEFAULT)
    assert await stores_of(queue).requests.retry([ids[0]], job=job, job_keys=keys) == 1
    assert await queue.llm.cancel(ids[1]) is True
    assert await stores_of(queue).requests.is_open(ids[0])
    assert await queue.llm.cancel(ids[0]) is True
    assert not await stores_of(queue).requests.is_open(ids[0])


async def test_one_reader_does_not_shorten_the_answer_of_another(queue: JobQueue) -> None:
    shared = await submit(queue, "openai", "same", "same")
    (alone,) = await submit(queue, "openai", "alone")
    for id_ in (shared[0], alone):
        await stores_of(queue).requests.answer(id_, Answer(body={"choices": []}))
        await queue.llm_result(id_, timeout_s=10)
    read_ms = int(options_of().llm.read_result_ttl_s * 1000)
    keys = stores_of(queue).keys
    assert await stores_of(queue).client.pttl(keys.llm_result(shared[0])) > read_ms
    assert 0 < await stores_of(queue).client.pttl(keys.llm_result(alone)) <= read_ms
    assert await queue.llm_result(shared[1], timeout_s=10) == {"choices": []}


async def test_one_callers_deadline_does_not_end_the_request_of_another(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(takes_s=600)
    # A deadline within 0.2 s would be a direct call; a busy machine may take long to submit.
    settings = settings_for(private_valkey_url, fake, llm_deadline_margin_s=0.1)
    async with open_queue(settings) as queue:
        soon = datetime.now(UTC) + timedelta(seconds=4)
        patient, hasty = [
            *await submit(queue, "openai", "same"),
            *await submit(queue, "openai", "same", deadline=soon),
        ]
        read = await stores_of(queue).requests.read(patient)
        assert read is not None
        assert (read.deadline_ms, read.expires_ms) == (int(soon.timestamp() * 1000), None)
        # The shorter deadline passes while no worker runs; the answer still arrives.
        await eventually(lambda: passed(soon))
        async with running_worker(settings):
            assert await outcome(queue, patient) == "echo: same"
            assert await outcome(queue, hasty) == "echo: same"


async def passed(moment: datetime) -> bool:
    return datetime.now(UTC) > moment


async def test_a_request_ends_late_when_no_caller_has_time_left(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake, llm_deadline_margin_s=0.1)
    soon = datetime.now(UTC) + timedelta(seconds=1)
    later = soon + timedelta(seconds=0.5)
    async with open_queue(settings) as queue:
        ids = [
            *await submit(queue, "openai", "same", deadline=soon),
            *await submit(queue, "openai", "same", deadline=later),
        ]
        await eventually(lambda: passed(later))
        async with running_worker(settings):
            assert [await outcome(queue, id_) for id_ in ids] == ["error deadline_exceeded"] * 2


# -- a provider's lines ------------------------------------------------------------


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_line_for_a_request_of_another_batch_answers_nothing(
    private_valkey_url: str, fake: FakeProvider, provider: str
) -> None:
    settings = settings_for(private_valkey_url, fake, llm_batch_max_age_s=60)
    async with open_queue(settings) as queue, running_worker(settings):
        (victim,) = await queue.submit_many(
            [body(provider, "victim", model="other")],
            provider=provider,
            endpoint=ENDPOINT[provider],
        )
        fake.set(also_answers=victim)
        (id_,) = await submit(queue, provider, "attacker")
        group = (provider, ENDPOINT[provider], "m")
        await queue.enqueue("flush_llm_group", *group)
        assert await outcome(queue, id_) == "echo: attacker"
        await eventually(lambda: all_ended(queue))
        assert await stores_of(queue).requests.is_open(victim)
        await queue.flush_llm_batches()
        assert await outcome(queue, victim) == "echo: victim"


async def test_a_late_line_answers_a_request_that_left_its_batch(queue: JobQueue) -> None:
    (id_,) = await submit(queue, "openai", "moved")
    store = stores_of(queue).requests
    assert await store.answer_many([(id_, Answer(body={}))], line_of="never") == 0
    # Close to its deadline the request is a direct call, while the batch continues at the provider.
    await stores_of(queue).client.hset(stores_of(queue).keys.llm_request(id_), "batch", "b")
    job = stores_of(queue).prepared.single(id_)
    rows = [(id_, job, stores_of(queue).keys.job_keys(job.id, Priority.HIGH))]
    assert await stores_of(queue).batches.detach("b", rows, mode="urgent") == 1
    assert await store.answer_many([(id_, Answer(body={}))], line_of="c") == 0
    assert await store.answer_many([(id_, Answer(body={"n": 1}))], line_of="b") == 1
    assert await queue.llm_result(id_, timeout_s=10) == {"n": 1}


# -- endpoints ---------------------------------------------------------------------

LIMITS = endpoint_limits()


async def attempt(queue: JobQueue, url: str, status: int, **more: Any) -> Any:
    """Attempt one delivery to `url` with this status; returns the claim if it was not sent."""
    id_ = await queue.send_webhook(url, {}, event_type="x", **more)
    found = await stores_of(queue).attempts.begin(id_, datetime.now(UTC), LIMITS, max_attempts=10)
    if not isinstance(found, ClaimedDelivery):
        return found
    outcome = Outcome(status=status)
    decision = decide(outcome, attempt=1, schedule=retry_schedule(), rng=lambda: 0.5)
    tried = Attempt(datetime.now(UTC), status, "", 1.0)
    return await stores_of(queue).attempts.record(
        id_, found.attempt, tried, decision, LIMITS, draw=0.5, max_attempts=10
    )


@pytest.mark.parametrize(
    ("gone", "well"),
    [
        ("?token=bad", "?token=good"),
        ("", "?token=good"),
        ("?token=bad", ""),
        ("?a=1&b=2", "?b=2&a=1"),
    ],
)
async def test_a_410_disables_its_own_query_and_no_other(
    queue: JobQueue, gone: str, well: str
) -> None:
    url = "https://hooks.example.com/hook"
    assert await attempt(queue, url + gone, 410) == ["endpoint_disabled"]
    refused = EndedUnsent(DeliveryState.DISABLED, "endpoint_disabled")
    assert await attempt(queue, url + gone, 200) == refused
    assert await attempt(queue, url + well, 200) == []
    assert await queue.webhooks.enable(url + well) is False
    assert await queue.webhooks.enable(url + gone) is True


async def test_an_endpoint_id_names_one_endpoint_whatever_the_query(queue: JobQueue) -> None:
    url, named = "https://hooks.example.com/hook", {"endpoint_id": "tenant-1"}
    assert await attempt(queue, url + "?t=1", 410, **named) == ["endpoint_disabled"]
    assert isinstance(await attempt(queue, url + "?t=2", 200, **named), EndedUnsent)
    assert await attempt(queue, url + "?t=1", 200, endpoint_id="tenant-2") == []


async def all_ended(queue: JobQueue) -> bool:
    shown = await queue.llm.batches.list()
    return bool(shown) and all(row["state"] in {"done", "failed"} for row in shown)
