"""How LLM requests ended, by group and time: counted by the scripts that end them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cache.connection.scripts import load
from tests.support.llm import ENDPOINT, body
from tests.support.options import options_of
from tests.support.queues import queue_of, stores_of
from tests.support.web import asking
from worker import InvalidArgument, JobQueue, Priority
from worker.keys import QueueKeys
from worker.llm.answers import CANCELED, Answer
from worker.llm.grouping import Group
from worker.llm.options import FlushRules
from worker.queue.series import LIMITS_MS, OUTCOMES, Counts, bucket_of
from worker.queue.series_reader import OTHER

pytestmark = pytest.mark.integration

CHAT = ENDPOINT["openai"]
GOOD, BAD = Answer(body={"choices": []}), Answer(kind="server_error", message="down")
NAMES = {"provider": "openai", "endpoint": CHAT, "model": "m"}


class Lab:
    """Takes the part of a worker's jobs, without a provider."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self.stores = stores_of(queue)
        self.requests = self.stores.requests

    async def submit(self, text: str, *, model: str = "m", **more: Any) -> str:
        return await self.queue.submit_llm_request(
            body("openai", text, model), provider="openai", endpoint=CHAT, **more
        )

    async def seal(self, batch_id: str) -> None:
        job = self.stores.prepared.batch(batch_id)
        await self.stores.batches.seal(
            Group("openai", CHAT, "m"),
            batch_id,
            rules=FlushRules(100, 10**9, 0, 0),
            full_only=False,
            job=job,
            job_keys=self.stores.keys.job_keys(job.id, Priority.DEFAULT),
        )

    async def submitted(self, id_: str, ago_s: float) -> None:
        """Let a request have been submitted so long ago."""
        key = self.stores.keys.llm_request(id_)
        since = int(await self.requests.client.hget(key, "by:"))
        await self.requests.client.hset(key, "by:", since - int(ago_s * 1000))

    async def total(self, model: str = "m") -> Counts:
        """Of one group; its minutes and hours must agree with it."""
        (found,) = await self.queue.llm.history.read(model=model, step="minute")
        (hours,) = await self.queue.llm.history.read(model=model, step="hour")
        assert (found.provider, found.endpoint, found.model) == ("openai", CHAT, model)
        assert found.total == found.counts == hours.counts
        return found.total


@pytest.fixture
def lab(client: Any, prefix: str) -> Lab:
    return Lab(queue_of(client, prefix, options_of(llm_batch_max_age_s=3600)))


def outcomes(counts: Counts) -> dict[str, int]:
    return {name: count for name in OUTCOMES if (count := getattr(counts, name))}


async def test_every_way_a_request_ends_is_counted(lab: Lab) -> None:
    ids = [await lab.submit(f"q{n}") for n in range(5)]
    await lab.requests.answer(ids[0], GOOD, run_s=0.03)
    await lab.requests.answer(ids[1], BAD, run_s=2)
    await lab.requests.answer(ids[2], CANCELED)
    assert await lab.queue.llm.cancel(ids[3])
    await lab.seal("b")
    job = lab.stores.prepared.flush("again", Group("openai", CHAT, "m"))
    keys = lab.stores.keys.job_keys(job.id, Priority.DEFAULT)
    await lab.stores.batches.detach("b", [(ids[4], job, keys)], mode="wait")
    await lab.requests.answer_many([(ids[4], GOOD)], line_of="b", run_s=0)
    urgent = await lab.submit("now", urgent=True)
    await lab.requests.answer(urgent, GOOD, run_s=0)

    total = await lab.total()
    assert outcomes(total) == {"completed": 3, "retried": 1, "dead": 1, "aborted": 2}
    # Only requests that were sent have times.
    assert total.run.count == total.wait.count == 4
    assert total.run.total_s == pytest.approx(2.03)


async def test_a_wait_ends_when_the_request_is_sent(lab: Lab) -> None:
    first, shared = await lab.submit("a"), await lab.submit("b")
    assert (await lab.submit("b")).startswith(f"{shared}.")
    await lab.submitted(first, 600)
    await lab.submitted(shared, 60)
    await lab.requests.answer(first, GOOD, run_s=300)
    await lab.requests.answer(shared, GOOD, run_s=20)
    wait = (await lab.total()).wait
    assert 340 <= wait.total_s < 400
    assert [LIMITS_MS[at] for at, count in enumerate(wait.counts) if count] == [60_000, 900_000]


async def test_a_retried_request_begins_to_wait_anew(lab: Lab) -> None:
    id_ = await lab.submit("a")
    await lab.seal("b")
    await lab.submitted(id_, 3000)
    await lab.requests.answer(id_, BAD)
    job = lab.stores.prepared.flush("again", Group("openai", CHAT, "m"))
    keys = lab.stores.keys.job_keys(job.id, Priority.DEFAULT)
    assert await lab.requests.retry([id_], job=job, job_keys=keys) == 1
    await lab.requests.answer(id_, GOOD, run_s=0)
    total = await lab.total()
    assert outcomes(total) == {"completed": 1, "dead": 1}
    assert total.wait.count == 1
    assert total.wait.total_s < 3000


async def test_a_request_of_an_earlier_version_counts_without_times(lab: Lab, client: Any) -> None:
    id_ = await lab.submit("a")
    await client.hset(lab.stores.keys.llm_request(id_), "by:", 1)
    await lab.requests.answer(id_, GOOD, run_s=1)
    total = await lab.total()
    assert (total.completed, total.run.count) == (1, 0)


async def test_an_answer_that_is_sent_twice_counts_once(lab: Lab) -> None:
    id_ = await lab.submit("a")
    for _ in range(2):
        await lab.requests.answer(id_, GOOD, run_s=1)
    for _ in range(2):
        await lab.queue.llm.cancel(id_)
    assert outcomes(await lab.total()) == {"completed": 1}


async def test_the_history_never_holds_up_an_answer(lab: Lab, client: Any, prefix: str) -> None:
    index = QueueKeys(prefix).llm_history.index
    for kind in ("set", "rpush"):
        await client.delete(index)
        await getattr(client, kind)(index, "not ours")
        id_ = await lab.submit(kind)
        await lab.requests.answer(id_, GOOD)
        assert await lab.queue.llm_result(id_) == GOOD.body
    await client.delete(index)
    for group in (b"", b"\xc1", msgpack.packb("text"), msgpack.packb([1, 2]), msgpack.packb(7)):
        id_ = await lab.submit(repr(group))
        await client.hset(lab.stores.keys.llm_request(id_), "group", group)
        await lab.requests.answer(id_, GOOD)
        assert await lab.queue.llm_result(id_) == GOOD.body
    assert await lab.queue.llm.history.read() == []


async def test_groups_are_counted_apart_and_found_by_filters(lab: Lab) -> None:
    for model in ("m", "ft:m:x", "ft:m:x", "ö"):
        id_ = await lab.submit("same", model=model, dedupe=False)
        await lab.requests.answer(id_, GOOD)
    read = lab.queue.llm.history.read
    found = {each.model: each.total.completed for each in await read()}
    assert found == {"m": 1, "ft:m:x": 2, "ö": 1}
    assert [each.model for each in await read(model="ft:m:x")] == ["ft:m:x"]
    assert len(await read(provider="openai", endpoint="chat/completions")) == 3
    assert await read(provider="anthropic") == []
    assert await read(endpoint="responses") == []


# -- bounds -----------------------------------------------------------------------


def step(rest: str) -> str:
    steps = load("worker.queue", "_types"), load("worker.llm", "_count_requests", "..queue")
    return "\n".join(step.source for step in steps) + rest


async def count(client: Any, prefix: str, moment: datetime, *models: str) -> None:
    """Count one canceled request of each model, with the scripts' own step, at a time."""
    script = step(
        """
for _, model in ipairs(cmsgpack.unpack(ARGV[3])) do
  count_request(cmsgpack.pack({'openai', '/v1/x', model}), CANCELED, 0, -1)
end
count_requests(ARGV[1])"""
    )
    # The step reads the clock itself.
    clock = "redis = setmetatable({pcall = function(name, ...)"
    clock += " if name == 'TIME' then return {tonumber(ARGV[2]), 0} end"
    clock += " return theirs.pcall(name, ...) end}, {__index = theirs})\n"
    source = f"local theirs, redis = redis, nil\n{clock}{script}"
    await client.eval(source, 0, prefix, int(moment.timestamp()), msgpack.packb(models))


async def test_an_idle_group_gives_its_place_and_keys_to_a_new_one(
    client: Any, prefix: str
) -> None:
    queue, begin = queue_of(client, prefix), datetime.now(UTC) - timedelta(days=3)
    known = [f"m{n}" for n in range(128)]
    llm = QueueKeys(prefix).llm
    await count(client, llm, begin, *known)
    await count(client, llm, begin + timedelta(hours=23), "late", *known[1:])
    found = {each.model: each.total for each in await queue.llm.history.read()}
    assert set(found) == {*known, OTHER}
    for model in ("new", "newer"):
        await count(client, llm, begin + timedelta(hours=25), model)
    after = {each.model: each.total.aborted for each in await queue.llm.history.read()}
    assert set(after) == {*known[1:], "new", OTHER}
    assert after[OTHER] == 2
    ttls = [await client.pttl(key) async for key in client.scan_iter(f"{prefix}*")]
    assert all(0 < ttl <= 31 * 86_400_000 for ttl in ttls)
    assert not [key async for key in client.scan_iter(f"{prefix}*:{known[0]}")]


async def test_the_script_and_the_reader_have_the_same_buckets(client: Any) -> None:
    times = [0, 0.5, *(ms + more for ms in LIMITS_MS for more in (-0.25, 0, 0.25)), 10**15]
    script = step(
        """
local found = {}
for i, ms in ipairs(ARGV) do
  found[i] = bucket_of(tonumber(ms))
end
return found"""
    )
    assert await client.eval(script, 0, *times) == [bucket_of(ms / 1000) for ms in times]


# -- where it is shown ------------------------------------------------------------


async def test_a_group_is_shown_with_its_history(lab: Lab) -> None:
    await lab.requests.answer(await lab.submit("a"), GOOD, run_s=3)
    await lab.requests.answer(await lab.submit("b"), BAD, run_s=3)
    async with asking(lab.queue) as web:
        (shown,) = (await web.get("/api/llm/history", params=NAMES)).json()
        every = (await web.get("/api/llm/history")).json()
        none = (await web.get("/api/llm/history", params={"model": "other"})).json()
        page = (await web.get("/batches")).text
        (link,) = re.findall(r'href="(/group\?[^"]*)"', page)
        group = (await web.get(link.replace("&amp;", "&"))).text
        other = (await web.get("/group", params={**NAMES, "model": "other"})).text
        metrics = (await web.get("/metrics")).text
    assert (shown["counts"]["completed"], shown["counts"]["dead"]) == (1, 1)
    assert every == [shown]
    assert none == []
    assert "5 s" in page
    assert "Answered requests" in group
    assert "1 in all; most in one step: 1." in group
    assert "No request ended in this time" in other
    samples = {
        (sample.name, sample.labels.get("outcome"), sample.labels.get("le")): sample
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name.startswith("letta_llm_request")
    }
    assert samples["letta_llm_request_ends_total", "dead", None].value == 1
    assert samples["letta_llm_request_duration_seconds_bucket", None, "2"].value == 0
    assert samples["letta_llm_request_duration_seconds_bucket", None, "5"].value == 2
    assert samples["letta_llm_request_queue_time_seconds_count", None, None].labels == NAMES


async def test_a_read_is_refused_with_what_is_wrong(lab: Lab) -> None:
    wrongs: list[dict[str, Any]] = [
        {"step": "day"},
        {"since": datetime(2024, 1, 1)},  # noqa: DTZ001
        {"provider": ""},
        {"endpoint": 7},
        {"model": "x" * 257},
    ]
    for wrong in wrongs:
        with pytest.raises(InvalidArgument):
            await lab.queue.llm.history.read(**wrong)
