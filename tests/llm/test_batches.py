"""Tests batches against a provider with every kind of fault."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.llm import (
    CREATE,
    ENDPOINT,
    PROVIDERS,
    body,
    outcome,
    outcomes,
    settings_for,
    submit,
)
from tests.support.llm_worker import worker_process
from tests.support.options import options_of
from tests.support.providers import FakeProvider, fake_provider
from tests.support.queues import open_queue, stores_of
from tests.support.wait import eventually
from tests.support.workers import running_worker
from worker import InvalidArgument, NotFound, Priority
from worker.llm.answers import CANCELED
from worker.llm.options import flush_rules
from worker.llm.states import BatchState

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def one_fake() -> Iterator[FakeProvider]:
    with fake_provider() as fake:
        yield fake


@pytest.fixture
def fake(one_fake: FakeProvider) -> FakeProvider:
    one_fake.reset()
    return one_fake


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.llm.direct._OUTAGE_BASE_S", 0.02)


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_expired_missing_and_overloaded_items_are_put_back(
    private_valkey_url: str, fake: FakeProvider, provider: str
) -> None:
    texts = ["a", "please fail", "please expire", "please overload", "please vanish"]
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, provider, *texts)
        got = await outcomes(queue, ids)
        wrong = "invalid_request_error" if provider == "anthropic" else "invalid_prompt"
        assert got[0] == "echo: a"
        assert got[1] == f"error {wrong}"
        assert got[2:] == [f"echo: {text}" for text in texts[2:]]
        shown = await eventually(lambda: ended(queue, 2))
        (history,) = await queue.llm.history.read()
    total = history.total
    assert (total.completed, total.retried, total.dead) == (4, 3, 1)
    assert total.run.count == total.wait.count == 5
    first = shown[-1]
    assert (first["requests"], first["succeeded"], first["failed"]) == (5, 1, 1)
    assert (first["moved"], first["outstanding"]) == (3, 0)
    assert first["usage"]["input"] > 0
    assert first["usage"]["cached"] == 1


async def ended(queue: Any, least: int) -> Any:
    """All batches, when at least `count` have ended and none is under way."""
    shown = await queue.llm.batches.list()
    over = [row for row in shown if row["state"] in {"done", "failed"}]
    return shown if len(over) == len(shown) >= least else None


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_an_item_that_never_succeeds_ends_with_its_error(
    private_valkey_url: str, fake: FakeProvider, provider: str
) -> None:
    settings = settings_for(private_valkey_url, fake, llm_item_max_tries=2)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, provider, "a", "please expire always", "please vanish always")
        kinds = await outcomes(queue, ids)
    assert kinds[0] == "echo: a"
    assert kinds[1] in {"error expired", "error batch_expired"}
    assert kinds[2] == "error missing"
    # The expired item was resent first, the missing one after a second read of the results.
    assert fake.calls(CREATE[provider]) in {2, 3}


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("fault", ["drop", "lose"])
async def test_a_submission_without_a_reply_is_looked_up_first(
    private_valkey_url: str, fake: FakeProvider, provider: str, fault: str
) -> None:
    fake.fault("POST", CREATE[provider].removeprefix("POST "), fault)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, provider, *(f"q{n}" for n in range(7)))
        assert await outcomes(queue, ids) == [f"echo: q{n}" for n in range(7)]
        (shown,) = await eventually(lambda: ended(queue, 1))
    assert shown["ambiguous"] == 1
    # If the submission was lost, it is sent again after the wait; if it arrived, it is adopted.
    assert len(fake.report()["batches"]) == 1
    assert fake.calls(CREATE[provider]) == (1 if fault == "drop" else 2)


async def test_a_foreign_batch_of_the_same_size_is_not_adopted(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    import anthropic

    with anthropic.Anthropic(base_url=fake.anthropic_url, api_key="k") as claude:
        row: Any = {"custom_id": "foreign", "params": body("anthropic", "not yours")}
        claude.messages.batches.create(requests=[row])
    fake.fault("POST", "/anthropic/v1/messages/batches", "drop")
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        (id_,) = await submit(queue, "anthropic", "mine")
        assert await outcome(queue, id_) == "echo: mine"
    assert len(fake.report()["batches"]) == 2


async def test_ambiguous_batches_fail_if_the_operator_says_so(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.fault("POST", "/v1/batches", "lose")
    settings = settings_for(private_valkey_url, fake, llm_on_ambiguous="fail")
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a")
        assert await outcomes(queue, ids) == ["error batch_refused"]
        (shown,) = await eventually(lambda: ended(queue, 1))
        assert "LETTA_LLM_ON_AMBIGUOUS" in shown["error"]
        # The operator has checked and retries the requests.
        assert await queue.llm.batches.retry(shown["id"]) == 1
        assert await outcomes(queue, ids) == ["echo: a"]


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_busy_provider_is_retried_without_a_lookup(
    private_valkey_url: str, fake: FakeProvider, provider: str
) -> None:
    path = CREATE[provider].removeprefix("POST ")
    busy = {"status": 429, "headers": {"retry-after": "0.05"}, "times": 2}
    fake.fault("POST", path, "status", **busy)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, provider, "a")
        assert await outcomes(queue, ids) == ["echo: a"]
        (shown,) = await eventually(lambda: ended(queue, 1))
    assert shown["ambiguous"] == 0
    assert fake.calls(CREATE[provider]) == 3


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_a_batch_that_is_not_found_at_first_is_polled_again(
    private_valkey_url: str, fake: FakeProvider, provider: str
) -> None:
    fake.set(not_found=2, empty_error_file=True)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, provider, "a", "b")
        assert await outcomes(queue, ids) == ["echo: a", "echo: b"]


async def test_a_file_refused_for_one_line_fails_that_line_only(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(outcome="failed")
    settings = settings_for(private_valkey_url, fake, llm_poll_interval_s=0.05)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "bad", "good")
        assert await outcome(queue, ids[0]) == "error invalid_request"
        fake.set(outcome="completed")
        assert await outcome(queue, ids[1]) == "echo: good"


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refused_key_keeps_submitted_batches(
    private_valkey_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("worker.llm.run.LOOK_AGAIN_S", 0.05)
    fake.fault("GET", "/v1/batches/", "status", status=status, times=2)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a")
        assert await outcomes(queue, ids) == ["echo: a"]
        # Nothing is paid for yet, so the callers get the error at once.
        fake.fault("POST", "/v1/batches", "status", status=status)
        ids = await submit(queue, "openai", "b")
        assert await outcomes(queue, ids) == ["error batch_refused"]


async def test_an_expired_batch_keeps_its_results_and_resends_the_rest(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(outcome="expired")
    settings = settings_for(private_valkey_url, fake, llm_item_max_tries=9)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", *(f"q{n}" for n in range(4)))
        assert await outcomes(queue, ids) == [f"echo: q{n}" for n in range(4)]
    assert fake.calls(CREATE["openai"]) == 3  # 4, 2, 1


async def test_a_request_close_to_its_deadline_leaves_its_batch(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(polls=1_000_000)
    settings = settings_for(private_valkey_url, fake, llm_deadline_margin_s=60)
    async with open_queue(settings) as queue, running_worker(settings):
        await submit(queue, "openai", "soon")
        await eventually(lambda: under_way(queue))
        # Another caller of the same request, who has less time, but not so little that the
        # request is sent directly at once.
        soon = datetime.now(UTC) + timedelta(seconds=63)
        (id_,) = await submit(queue, "openai", "soon", deadline=soon)
        assert await outcome(queue, id_) == "echo: soon"
        shown = await eventually(lambda: ended(queue, 1))
    assert fake.calls("POST /v1/chat/completions") == 1
    # No caller waits for the batch, so it was canceled at the provider.
    assert shown[0]["moved"] == 1
    assert list(fake.report()["status"].values()) == ["cancelled"]


@pytest.mark.parametrize("provider", PROVIDERS)
async def test_canceling_a_batch_keeps_finished_results(
    private_valkey_url: str, fake: FakeProvider, provider: str
) -> None:
    fake.set(polls=1_000_000)
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, provider, "a", "b")
        await eventually(lambda: under_way(queue))
        (shown,) = await queue.llm.batches.list()
        assert await queue.llm.batches.cancel(shown["id"]) is True
        assert sorted(await outcomes(queue, ids)) == ["echo: a", "error canceled"]
        await eventually(lambda: ended(queue, 1))
        assert await queue.llm.batches.cancel(shown["id"]) is False
        with pytest.raises(NotFound):
            await queue.llm.batches.cancel("unknown")


async def under_way(queue: Any) -> bool:
    return any(row["state"] == "submitted" for row in await queue.llm.batches.list())


async def test_a_request_is_canceled_only_when_no_caller_waits(
    valkey_url: str, private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue:
        (first,) = await submit(queue, "openai", "same")
        (second,) = await submit(queue, "openai", "same")
        assert await queue.llm.cancel(first) is True
        assert await stores_of(queue).requests.is_open(first)
        assert await queue.llm.cancel(second) is True
        assert await outcome(queue, first) == "error canceled"
        assert await queue.llm.cancel(first) is False
        assert await queue.llm.batches.groups() == []


async def test_canceling_a_group_ends_waiting_requests_and_batches(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    fake.set(polls=1_000_000)
    settings = settings_for(private_valkey_url, fake, llm_batch_max_requests=2)
    async with open_queue(settings) as queue:
        async with running_worker(settings):
            ids = await submit(queue, "openai", "a", "b")
            await eventually(lambda: under_way(queue))
        ids += await submit(queue, "openai", "c")
        group = ("openai", "chat/completions", "m")
        assert await queue.llm.batches.cancel_group(*group) == 2
        with pytest.raises(InvalidArgument):
            await queue.llm.batches.cancel_group("openai", "images", "m")
        async with running_worker(settings):
            got = await outcomes(queue, ids)
    assert got.count("error canceled") == 2
    assert got[2] == "error canceled"


async def test_a_cached_answer_serves_equal_requests_until_it_expires(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake, llm_cache_ttl_s=60)
    async with open_queue(settings) as queue, running_worker(settings):
        (first,) = await submit(queue, "openai", "again")
        assert await outcome(queue, first) == "echo: again"
        (second,) = await submit(queue, "openai", "again")
        assert second.startswith(f"{first}.")
        assert [await outcome(queue, id_) for id_ in (first, second)] == ["echo: again"] * 2
        (other,) = await submit(queue, "openai", "please fail")
        await outcome(queue, other)
        (anew,) = await submit(queue, "openai", "please fail")
        assert not anew.startswith(other)


async def test_large_answers_are_compressed_and_a_read_shortens_the_ttl(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake, llm_read_result_ttl_s=50)
    text = "long " * 20_000
    async with open_queue(settings) as queue, running_worker(settings):
        (id_,) = await submit(queue, "openai", text)
        key = stores_of(queue).keys.llm_result(id_)

        async def stored() -> Any:
            return await stores_of(queue).client.get(key)

        assert len(await eventually(stored)) < 5_000
        assert await stores_of(queue).client.pttl(key) > 60_000
        assert await outcome(queue, id_) == f"echo: {text}"
        assert await stores_of(queue).client.pttl(key) <= 50_000


async def test_the_end_of_a_batch_sends_a_webhook(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake, llm_webhook_url="http://127.0.0.1:9/hook")
    async with open_queue(settings) as queue, running_worker(settings):
        ids = await submit(queue, "openai", "a")
        await outcomes(queue, ids)
        (shown,) = await eventually(lambda: ended(queue, 1))
        delivery = await queue.delivery(f"llm-batch:{shown['id']}")
    assert delivery.event_type == "llm.batch.ended"


@pytest.mark.parametrize("rule", ["requests", "bytes", "tokens"])
async def test_a_group_is_flushed_when_any_of_its_limits_is_reached(
    private_valkey_url: str, fake: FakeProvider, rule: str
) -> None:
    limit = {
        "requests": {"llm_batch_max_requests": 4},
        "bytes": {"llm_batch_max_bytes": 4200},
        "tokens": {"llm_batch_max_tokens": 1200},
    }[rule]
    settings = settings_for(private_valkey_url, fake, llm_batch_max_age_s=3600, **limit)
    async with open_queue(settings) as queue, running_worker(settings):
        texts = [f"{n} " + "x" * 1000 for n in range(8)]
        ids = await submit(queue, "openai", *texts)
        await outcome(queue, ids[0])
        shown = await eventually(lambda: ended(queue, 1))
    sizes = {row["requests"] for row in shown}
    assert sizes <= {3, 4}


async def test_an_answer_stored_by_another_process_wakes_the_caller(
    private_valkey_url: str, fake: FakeProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the message the next poll would be in an hour.
    monkeypatch.setattr("worker.llm.client._ANSWER_POLL_S", 3600.0)
    settings = settings_for(private_valkey_url, fake)
    raw = settings.model_dump(mode="json", exclude_unset=True)
    raw |= {"openai_api_key": "k", "anthropic_api_key": "k"}
    async with open_queue(settings) as queue:
        ids = await submit(queue, "openai", "a", "b")
        waiting = asyncio.gather(*(outcome(queue, id_, 60) for id_ in ids))

        async def listens() -> bool:
            ((_, listeners),) = await stores_of(queue).client.pubsub_numsub(
                stores_of(queue).keys.llm_answered
            )
            return bool(listeners)

        await eventually(listens)
        async with worker_process(raw):
            assert await waiting == ["echo: a", "echo: b"]


async def test_many_requests_keep_their_order_and_groups(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue:
        bodies = [body("openai", f"q{n}", model=f"m{n % 3}") for n in range(700)]
        ids = await queue.submit_many(bodies, provider="openai", endpoint="chat/completions")
        assert len(set(ids)) == 700
        again = await queue.submit_many(bodies, provider="openai", endpoint="chat/completions")
        assert [id_.partition(".")[0] for id_ in again] == ids
        waiting = {
            row["model"]: row["waiting"]["requests"] for row in await queue.llm.batches.groups()
        }
        assert waiting == {"m0": 234, "m1": 233, "m2": 233}
        with pytest.raises(InvalidArgument):
            await queue.submit_many(
                [*bodies, {"model": "m"}], provider="openai", endpoint="chat/completions"
            )
        for model in waiting:
            await queue.llm.batches.cancel_group("openai", "chat/completions", model)


async def test_urgent_requests_are_direct_calls_at_either_provider(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue, running_worker(settings):
        ids = [
            await queue.submit_llm_request(
                body(provider, "now"), provider=provider, endpoint=endpoint, urgent=True
            )
            for provider, endpoint in ENDPOINT.items()
        ]
        assert await outcomes(queue, ids) == ["echo: now", "echo: now"]
    assert fake.report()["batches"] == {}


async def test_an_overtaken_run_moves_nothing_and_open_items_block_the_end(
    private_valkey_url: str, fake: FakeProvider
) -> None:
    settings = settings_for(private_valkey_url, fake)
    async with open_queue(settings) as queue:
        (id_,) = await submit(queue, "openai", "a")
        (group,) = await stores_of(queue).batches.groups()
        job = stores_of(queue).prepared.batch("b1")
        rules = flush_rules(options_of().llm, "openai")
        keys = stores_of(queue).keys.job_keys(job.id, Priority.DEFAULT)
        sealed: Any = {"rules": rules, "full_only": False, "job": job, "job_keys": keys}
        assert await stores_of(queue).batches.seal(group, "b1", **sealed) == 1
        stale, fresh = (
            await stores_of(queue).batches.take("b1"),
            await stores_of(queue).batches.take("b1"),
        )
        assert stale is not None
        assert fresh is not None
        assert await stores_of(queue).batches.move(stale, BatchState.UPLOADING) == 0
        assert await stores_of(queue).batches.move(fresh, BatchState.UPLOADING) == 1
        # A move that is sent again after a lost reply is the same move.
        assert await stores_of(queue).batches.move(fresh, BatchState.UPLOADING) == 1
        moved = fresh.moved(BatchState.UPLOADING, {})
        assert await stores_of(queue).batches.move(moved, BatchState.DONE) == -1
        await stores_of(queue).requests.answer(id_, CANCELED)
        assert await stores_of(queue).batches.move(moved, BatchState.DONE) == 1
