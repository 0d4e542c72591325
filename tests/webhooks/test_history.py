"""How attempts ended, by endpoint and time: counted by the scripts that end them."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import msgpack
import pytest

from cache.connection.scripts import load
from tests.support.options import endpoint_limits
from tests.support.queues import queue_of, stores_of
from tests.support.web import asking
from worker import InvalidArgument, JobQueue
from worker.keys import QueueKeys
from worker.queue.series import OUTCOMES, Counts
from worker.queue.series_reader import OTHER
from worker.webhooks.attempts import Attempt, ClaimedDelivery, EndedUnsent
from worker.webhooks.limits import endpoint_of
from worker.webhooks.policy import DeliveryState, Verdict

pytestmark = pytest.mark.integration


URL = "https://hooks.example.com/a"
LIMITS = endpoint_limits(breaker_failures=0)
NOW = datetime.now(UTC)
DELIVERED = Verdict(DeliveryState.DELIVERED)
RETRIED = Verdict(DeliveryState.WAITING, wait_s=0)
DEAD = Verdict(DeliveryState.DEAD)


class Lab:
    """Takes the part of a worker's jobs, without HTTP."""

    def __init__(self, queue: JobQueue) -> None:
        self.queue = queue
        self.attempts = stores_of(queue).attempts

    async def send(self, url: str = URL, **more: Any) -> str:
        return await self.queue.send_webhook(url, {}, event_type="x", **more)

    async def begin(self, id_: str) -> Any:
        return await self.attempts.begin(id_, NOW, LIMITS, max_attempts=3)

    async def attempt(self, id_: str, verdict: Verdict, *, ms: float = 1.0) -> None:
        claimed = await self.begin(id_)
        assert isinstance(claimed, ClaimedDelivery), claimed
        ended = Attempt(NOW, 200, "", ms)
        await self.attempts.record(
            id_,
            claimed.attempt,
            ended,
            verdict,
            LIMITS,
            draw=0.5,
            max_attempts=3,
            wait_s=claimed.wait_s,
        )

    async def total(self, url: str = URL) -> Counts:
        """Of one endpoint; its minutes and hours must agree with it."""
        (found,) = await self.queue.webhooks.history(url, step="minute")
        (hours,) = await self.queue.webhooks.history(url, step="hour")
        assert found.endpoint == endpoint_of(url, None)
        assert found.total == found.counts == hours.counts
        return found.total


@pytest.fixture
def lab(client: Any, prefix: str) -> Lab:
    return Lab(queue_of(client, prefix))


def outcomes(counts: Counts) -> dict[str, int]:
    return {name: count for name in OUTCOMES if (count := getattr(counts, name))}


async def test_every_way_an_attempt_ends_is_counted(lab: Lab, client: Any, prefix: str) -> None:
    await lab.attempt(await lab.send(), DELIVERED, ms=30)
    id_ = await lab.send()
    await lab.attempt(id_, RETRIED)
    await lab.attempt(id_, DEAD)
    interrupted = await lab.send()
    for _ in range(3):
        assert isinstance(await lab.begin(interrupted), ClaimedDelivery)
    assert isinstance(await lab.begin(interrupted), EndedUnsent)
    jobless = await lab.send()
    job = await client.hget(QueueKeys(prefix).webhook(jobless), "job")
    await client.delete(QueueKeys(prefix).job(job.decode()))
    await lab.attempts.end_jobless(seen_s=0, most=100)
    unsent = await lab.send()
    await lab.queue.webhooks.disable(URL)
    assert isinstance(await lab.begin(unsent), EndedUnsent)

    total = await lab.total()
    assert outcomes(total) == {"completed": 1, "retried": 1, "dead": 3, "aborted": 1, "lapsed": 3}
    # Only attempts that ended have times.
    assert total.run.count == total.wait.count == 3
    assert total.run.total_s == pytest.approx(0.032)


async def test_the_wait_goes_back_to_when_an_attempt_was_due(lab: Lab, client: Any) -> None:
    # Not NOW: waits are counted by the server's clock, and this module may be imported long before.
    keys, now = lab.attempts.keys, int(datetime.now(UTC).timestamp() * 1000)
    first, retried = await lab.send(), await lab.send(webhook_id="retried")
    await client.hset(keys.webhook(first), "created", now - 30_000)
    await lab.attempt(first, DELIVERED)
    await lab.attempt(retried, RETRIED)
    # The delay that the policy asked for is no wait; that since then is.
    await client.hset(
        keys.webhook(retried), mapping={"created": now - 3_600_000, "after": now - 200_000}
    )
    await lab.attempt(retried, DELIVERED)
    total = await lab.total()
    assert 230 <= total.wait.total_s < 3600
    assert total.wait.count == 3


async def test_endpoints_of_one_call_are_counted_apart(lab: Lab) -> None:
    urls = [f"https://hooks.example.com/{n}" for n in range(3)]
    for n, url in enumerate(urls):
        for _ in range(n + 1):
            await lab.attempt(await lab.send(url), DELIVERED)
    by_key = {each.endpoint: each.total.completed for each in await lab.queue.webhooks.history()}
    assert by_key == {endpoint_of(url, None): n + 1 for n, url in enumerate(urls)}
    assert await lab.queue.webhooks.history("https://hooks.example.com/none") == []
    assert await lab.queue.webhooks.history(endpoint_id="none") == []


class Doubled:
    """A client that sends each script twice, as one whose first reply was lost."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def evalsha(self, *words: Any) -> Any:
        await self._client.evalsha(*words)
        return await self._client.evalsha(*words)


async def test_a_call_that_is_sent_twice_counts_once(lab: Lab, client: Any) -> None:
    await lab.attempt(await lab.send("https://other.example.com/"), DELIVERED)  # loads the script
    lab.attempts.calls.client = Doubled(client)
    id_ = await lab.send()
    assert isinstance(await lab.begin(id_), ClaimedDelivery)
    await lab.attempt(id_, RETRIED)
    await lab.attempt(id_, DELIVERED)
    assert outcomes(await lab.total()) == {"completed": 1, "retried": 1, "lapsed": 1}


async def test_the_history_never_holds_up_a_delivery(lab: Lab, client: Any, prefix: str) -> None:
    index = QueueKeys(prefix).webhook_history.index
    for kind in ("set", "rpush"):
        await client.delete(index)
        await getattr(client, kind)(index, "not ours")
        id_ = await lab.send()
        await lab.attempt(id_, DELIVERED)
        assert (await lab.queue.delivery(id_)).state == "delivered"
    await client.delete(index)


# -- bounds -----------------------------------------------------------------------


async def count(client: Any, prefix: str, moment: datetime, *endpoints: str) -> None:
    """Count one delivered attempt at each endpoint, with the scripts' own step."""
    steps = ("_types", "_collect", "_count_attempts")
    homes = ("worker.queue", "worker.queue", "worker.webhooks")
    script = (
        "\n".join(
            load(home, step, "..queue").source for home, step in zip(homes, steps, strict=True)
        )
        + """
for _, endpoint in ipairs(cmsgpack.unpack(ARGV[3])) do
  count_attempt(endpoint, 'delivered', false, 0, 0, 10, 10)
end
count_attempts(ARGV[1], tonumber(ARGV[2]))"""
    )
    now = int(moment.timestamp() * 1000)
    await client.eval(script, 0, prefix, now, msgpack.packb(endpoints))


async def test_an_idle_endpoint_gives_its_place_and_keys_to_a_new_one(
    client: Any, prefix: str
) -> None:
    queue, begin = queue_of(client, prefix), NOW - timedelta(hours=3)
    known = [f"id:e{n}" for n in range(128)]
    await count(client, prefix, begin - timedelta(minutes=1), known[0])
    await count(client, prefix, begin, *known)
    # All have had an attempt within the hour.
    await count(client, prefix, begin + timedelta(minutes=59), "id:late", *known[1:])
    found = {each.endpoint: each.total for each in await queue.webhooks.history()}
    assert set(found) == {*known, OTHER}
    assert found[known[0]].completed == 2
    # One has had none, and two more want a place.
    await count(client, prefix, begin + timedelta(minutes=61), "id:new")
    await count(client, prefix, begin + timedelta(minutes=61), "id:newer")
    after = {each.endpoint: each.total.completed for each in await queue.webhooks.history()}
    assert Counter(after.values()) == {1: 1, 2: 128}
    assert set(after) == {*known[1:], "id:new", OTHER}
    assert after[OTHER] == 2
    ttls = [await client.pttl(key) async for key in client.scan_iter(f"{prefix}*")]
    assert all(0 < ttl <= 31 * 86_400_000 for ttl in ttls)
    assert not [key async for key in client.scan_iter(f"{prefix}*:{known[0]}")]


# -- where it is shown ------------------------------------------------------------


async def test_an_endpoint_is_shown_with_its_history(lab: Lab) -> None:
    await lab.attempt(await lab.send(), DELIVERED)
    await lab.attempt(await lab.send(), RETRIED)
    async with asking(lab.queue) as web:
        (shown,) = (await web.get("/api/endpoints/history", params={"name": URL})).json()
        every = (await web.get("/api/endpoints/history")).json()
        wrong = await web.get("/api/endpoints/history", params={"name": "ftp://x/"})
        page = (await web.get("/endpoint", params={"name": URL, "range": "1h"})).text
        other = (await web.get("/endpoint", params={"name": f"{URL}/other"})).text
    assert (shown["counts"]["completed"], shown["counts"]["retried"]) == (1, 1)
    assert every == [shown]
    assert wrong.status_code == 404
    assert "Delivered webhooks" in page
    assert "1 in all; most in one step: 1." in page
    assert "No attempt ended in this time" in other


async def test_a_read_is_refused_with_what_is_wrong(lab: Lab) -> None:
    wrongs: list[dict[str, Any]] = [
        {"step": "day"},
        {"since": datetime(2024, 1, 1)},  # noqa: DTZ001
        {"endpoint_id": ""},
        {"url": "ftp://x/"},
    ]
    for wrong in wrongs:
        with pytest.raises(InvalidArgument):
            await lab.queue.webhooks.history(**wrong)
