"""Rights that are taken away while clients and workers run: nothing is lost, and all goes on when they are back."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from redis.exceptions import RedisError

from cache.connection.scripts import load
from cache.encoding import codec
from tests.support.options import endpoint_limits, options_of
from tests.support.queues import queue_of
from tests.support.users import set_rights
from tests.support.wait import eventually
from worker import JobQueue, QueueUnavailable
from worker.engine.options import EngineOptions
from worker.engine.poll import Poll, PollStopped
from worker.engine.records import Claim
from worker.keys import EngineKeys, QueueKeys
from worker.llm.answers import Answer
from worker.llm.options import Retention
from worker.llm.requests import RequestStore
from worker.queue.rights import COMMANDS
from worker.webhooks.attempts import AttemptStore
from worker.webhooks.policy import DeliveryState, Verdict
from worker.webhooks.records import Attempt, ClaimedDelivery

pytestmark = pytest.mark.integration

KEYS = QueueKeys()
DELIVERED = Verdict(DeliveryState.DELIVERED, reason="delivered")
URL = "https://hooks.example.com/a"
LIMITS = endpoint_limits(concurrency=2)


def used_by(package: str, name: str, *shared: str) -> list[str]:
    words = set(re.findall(r"call\('([A-Z]+)'", load(package, name, *shared).source))
    return sorted(words & set(COMMANDS))


@pytest.fixture
def queue(owner: Any) -> JobQueue:
    return queue_of(owner, "arq:", options_of())


async def deny(owner: Any, command: str) -> None:
    await set_rights(owner, f"-{command}")


async def allow(owner: Any, command: str) -> None:
    await set_rights(owner, f"+{command}")


def poll_of(client: Any, name: str, *, gives_up: bool = True) -> Poll:
    made = Poll(client, EngineKeys(KEYS), EngineOptions(lease_s=0.05), worker_id=name)
    made.may_give_up = lambda: gives_up
    return made


async def claims_of(poll: Poll) -> list[Claim]:
    try:
        return (await poll.run([], 9)).claims
    except PollStopped:
        return []


# -- workers ----------------------------------------------------------------------


async def test_a_worker_without_a_right_costs_no_job_a_lost_lease(
    owner: Any, weak: Any, queue: JobQueue
) -> None:
    """Four workers poll meanwhile: three lost leases would make a job poison that never ran."""
    for command in used_by("worker.engine", "poll", "..queue"):
        await owner.flushall()
        await queue.enqueue("f", job_id="a")
        await deny(owner, command)
        claims: list[Claim] = []
        for number in range(4):
            # One whose claim succeeds runs the job; its lease is short, and would be taken over.
            if not claims:
                claims += await claims_of(poll_of(weak, f"w{number}"))
        await allow(owner, command)
        last = poll_of(weak, "last")
        while not claims:
            claims += await claims_of(last)
        found = [(claim.job_id, claim.stalled_count, claim.fault) for claim in claims]
        assert found == [("a", 0, "")], command
        assert not await queue.dead.list(), command


async def test_an_end_that_was_denied_is_written_when_the_right_is_back(
    owner: Any, weak: Any, queue: JobQueue
) -> None:
    job = {"id": "next", "queue": "low", "delay": 5, "body": codec.lua_text(b"body")}
    details = {"result": codec.lua_text(b"r"), "ttl": 60_000, "jobs": [job]}
    counted = [[3, "f", 1, 0, 1, 0, 0, 5, 5]]
    for command in used_by("worker.engine", "poll", "..queue"):
        await owner.flushall()
        await queue.enqueue("f", job_id="a")
        await queue.enqueue("f", job_id="b", delay_s=3600)
        poll = Poll(weak, EngineKeys(KEYS), EngineOptions(lease_s=60), worker_id="w")
        (claim,) = (await poll.run([], 9)).claims
        await deny(owner, command)
        sending = asyncio.create_task(
            poll.run([[*claim.end("done", details), 1]], 0, groups=counted)
        )
        await ended_or(sending, lambda poll=poll: not poll.is_connected)  # type: ignore[misc]
        await allow(owner, command)
        await asyncio.wait_for(sending, 30)
        assert await owner.get(KEYS.result("a")) == b"r", command
        assert await owner.get(KEYS.job("next")) == b"body", command
        assert await owner.zrange(KEYS.queue("low"), 0, -1) == [b"next"], command
        assert await owner.zrange(KEYS.queue(), 0, -1) == [b"b"], command
        of_job = (KEYS.job("a"), KEYS.in_progress("a"), EngineKeys(KEYS).running)
        assert not await owner.exists(*of_job), command
        assert not await queue.dead.list(), command


async def ended_or(task: asyncio.Future[Any], is_so: Callable[[], bool]) -> None:
    async def looked() -> bool:
        return task.done() or is_so()

    await eventually(looked)


async def test_a_denied_poll_names_the_command_and_the_remedy(
    owner: Any, weak: Any, queue: JobQueue, caplog: pytest.LogCaptureFixture
) -> None:
    await queue.enqueue("f")
    await deny(owner, "zadd")
    assert await claims_of(poll_of(weak, "w")) == []
    assert "queue.unreachable" in caplog.text
    assert "'zadd'" in caplog.text
    assert "allow it by ACL: SECURITY.md lists what is needed" in caplog.text


# -- enqueuers ---------------------------------------------------------------------


async def test_an_enqueue_that_was_denied_can_be_repeated(owner: Any, weak: Any) -> None:
    for command in ("ZADD", "SET", "DEL", "EXISTS", "ZCARD"):
        await owner.flushall()
        mine = queue_of(weak, "arq:", options_of(queue_max_length=9))
        await mine.enqueue("f", job_id="before")
        await deny(owner, command)
        with pytest.raises(QueueUnavailable, match=rf"'{command.lower()}'.*allow it by ACL"):
            await mine.enqueue("f", job_id="a")
        await allow(owner, command)
        await mine.enqueue("f", job_id="a")
        assert await owner.exists(KEYS.job("a")), command
        assert set(await owner.zrange(KEYS.queue(), 0, -1)) == {b"a", b"before"}, command


# -- webhooks ----------------------------------------------------------------------


async def test_an_attempt_goes_on_when_the_right_is_back(
    owner: Any, weak: Any, queue: JobQueue
) -> None:
    for command in used_by("worker.webhooks", "attempt_deliveries", "..queue"):
        await owner.flushall()
        id_ = await queue.send_webhook(URL, {}, event_type="x", on_end="f")
        store, now = AttemptStore(weak, KEYS, retention_s=60), datetime.now(UTC)
        beginning = store.begin(id_, now, LIMITS, max_attempts=9)
        found = await when_denied(owner, command, beginning, store)
        assert isinstance(found, ClaimedDelivery), command
        tried = Attempt(now, 200, "", 1.0)
        ending = store.record(
            id_, found.attempt, tried, DELIVERED, LIMITS, draw=0.5, max_attempts=9
        )
        await when_denied(owner, command, ending, store)
        delivery = await queue.delivery(id_)
        assert delivery.state is DeliveryState.DELIVERED, command
        assert delivery.attempts[-1].status == 200, command
        assert await owner.exists(KEYS.job(f"webhook-end:0:{id_}")), command
        assert await owner.ttl(KEYS.webhook(id_)) > 0, command


async def when_denied(owner: Any, command: str, work: Awaitable[Any], store: AttemptStore) -> Any:
    """Its result, though a command was denied at first."""
    await deny(owner, command)
    task = asyncio.ensure_future(work)
    await ended_or(task, lambda: store.calls.is_refused)
    await allow(owner, command)
    return await asyncio.wait_for(task, 30)


# -- LLM requests ------------------------------------------------------------------

CHAT = "/v1/chat/completions"


async def ask(queue: JobQueue) -> str:
    body = {"model": "m", "messages": ["same"]}
    return await queue.submit_llm_request(
        body, provider="openai", endpoint=CHAT, webhook_url="https://hooks.example.com/b"
    )


async def test_nobody_waits_for_a_request_whose_submission_was_denied(
    owner: Any, weak: Any
) -> None:
    mine = queue_of(weak, "arq:", options_of())
    await mine.enqueue("f")  # asks for the rights once
    for command in used_by("worker.llm", "submit_llm", "..queue"):
        await owner.flushall()
        await deny(owner, command)
        with suppress(QueueUnavailable):
            await ask(mine)
        await allow(owner, command)
        id_, _, _ = (await ask(mine)).partition(".")
        pending = [key async for key in owner.scan_iter(match="arq:llm:pending:*")]
        assert id_.encode() in await owner.lrange(pending[0], 0, -1), command
        assert await owner.hexists(KEYS.llm_request(id_), "body"), command


async def test_an_answer_that_was_denied_is_stored_at_the_next_try(
    owner: Any, weak: Any, queue: JobQueue
) -> None:
    retention = Retention(unread_s=60, read_s=60, equal_s=0)
    for command in used_by("worker.llm", "answer_llm", "..queue"):
        await owner.flushall()
        id_ = await ask(queue)
        store = RequestStore(weak, KEYS, retention)
        await deny(owner, command)
        with suppress(RedisError):
            await store.answer(id_, Answer(body={"n": 1}))
        await allow(owner, command)
        await store.answer(id_, Answer(body={"n": 1}))
        await store.send_callbacks()
        assert await queue.llm_result(id_, timeout_s=5) == {"n": 1}, command
        assert not await owner.exists(KEYS.llm_request(id_)), command
        told = [row for row in await owner.zrange(KEYS.queue(), 0, -1) if b"callback" in row]
        assert told, command


# -- pauses and burials --------------------------------------------------------------


async def test_a_paused_function_stays_paused_without_a_right(
    owner: Any, weak: Any, queue: JobQueue
) -> None:
    for command in ("HGETALL", "GETRANGE"):
        await owner.flushall()
        await queue.pause(function="f")
        await queue.enqueue("f", job_id="a")
        await deny(owner, command)
        assert await claims_of(poll_of(weak, "w")) == [], command
        await allow(owner, command)
        assert await claims_of(poll_of(weak, "w")) == [], command
        await queue.resume(function="f")
        assert [claim.job_id for claim in await claims_of(poll_of(weak, "last"))] == ["a"], command


async def test_a_burial_that_was_denied_leaves_no_body_that_blocks_the_id(
    owner: Any, weak: Any, queue: JobQueue
) -> None:
    for command in used_by("worker.engine", "poll", "..queue"):
        await owner.flushall()
        await queue.enqueue("f", job_id="a")
        await claims_of(poll_of(owner, "w"))
        await owner.set(KEYS.in_progress("a"), "w|3|1|90")
        await owner.zadd(EngineKeys(KEYS).running, {"a": 1})
        await deny(owner, command)
        await claims_of(poll_of(weak, "other"))
        await allow(owner, command)
        await claims_of(poll_of(weak, "other"))
        assert [dead.id for dead in await queue.dead.list()] == ["a"], command
        of_job = (KEYS.job("a"), KEYS.in_progress("a"), EngineKeys(KEYS).running)
        assert not await owner.exists(*of_job), command
