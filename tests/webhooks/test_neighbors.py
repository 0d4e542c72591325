"""Tests that endpoints of one host share nothing but its slots, and those fairly."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from tests.support.queues import queue_of
from tests.webhooks.test_limits import LIMITS, Lab
from worker.webhooks.attempts import ClaimedDelivery, EndedUnsent, Throttled
from worker.webhooks.limits import endpoint_of, host_of
from worker.webhooks.policy import DeliveryState

pytestmark = pytest.mark.integration

HOST = "https://hooks.example.com"
HANGING, WELL = f"{HOST}/hangs", f"{HOST}/well"


@pytest.fixture
async def lab(client: Any, prefix: str) -> Lab:
    return Lab(queue_of(client, prefix))


async def begun(lab: Lab, ids: list[str]) -> list[ClaimedDelivery]:
    """Begin what may begin."""
    found = [await lab.claim(id_) for id_ in ids]
    return [claimed for claimed in found if isinstance(claimed, ClaimedDelivery)]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"{HOST}/a", f"{HOST}/b"),
        (f"{HOST}/a?token=1", f"{HOST}/a?token=2"),
        (f"{HOST}/a", f"{HOST}/a?token=2"),
        (f"{HOST}/a", f"{HOST}/a/"),
        (f"{HOST}/a%2f", f"{HOST}/a%2F"),
        (f"{HOST}/a", f"{HOST}:8443/a"),
    ],
)
async def test_a_breaker_a_pause_and_a_410_stop_one_url_only(
    lab: Lab, one: str, other: str
) -> None:
    waiting = await lab.send(other)
    for _ in range(LIMITS.breaker_failures):
        await lab.attempt(await lab.send(one), status=500)
    assert (await lab.held(await lab.send(one))).reason == "closed"
    assert (await lab.queue.webhooks.endpoint(other)).failures == 0
    await lab.end(await lab.go(waiting), status=429, retry_after_s=30)
    assert (await lab.held(await lab.send(other))).reason == "closed"
    await lab.queue.webhooks.enable(one)
    await lab.queue.webhooks.enable(other)
    gone = await lab.send(one)
    await lab.attempt(gone, status=410)
    assert await lab.claim(await lab.send(one)) == EndedUnsent(
        DeliveryState.DISABLED, "endpoint_disabled"
    )
    await lab.go(await lab.send(other))


@pytest.mark.parametrize("same", [f"{HOST}/a#part", f"{HOST}:443/a", "HTTPS://hooks.example.com/a"])
async def test_spellings_that_send_the_same_are_one_endpoint(lab: Lab, same: str) -> None:
    await lab.attempt(await lab.send(f"{HOST}/a"), status=500)
    assert (await lab.queue.webhooks.endpoint(same)).failures == 1


async def test_order_belongs_to_an_endpoint(lab: Lab) -> None:
    first = await lab.send(f"{HOST}/a", ordering_key="k")
    await lab.go(await lab.send(f"{HOST}/b", ordering_key="k"))
    assert (await lab.held(await lab.send(f"{HOST}/a", ordering_key="k"))).reason == "ordered"
    await lab.go(first)


async def test_a_rate_belongs_to_an_endpoint(lab: Lab) -> None:
    lab.limits = replace(LIMITS, rate_per_s=0.1)
    await lab.go(await lab.send(f"{HOST}/a"))
    assert (await lab.held(await lab.send(f"{HOST}/a"))).reason == "rate"
    await lab.go(await lab.send(f"{HOST}/b"))


async def test_a_hanging_path_leaves_slots_of_its_host(lab: Lab) -> None:
    lab.limits = replace(LIMITS, concurrency=16, host_concurrency=24)
    hanging = await begun(lab, [await lab.send(HANGING) for _ in range(40)])
    assert len(hanging) == 16
    for n in range(200):
        await lab.end(await lab.go(await lab.send(f"{WELL}/{n}")), status=200)


async def test_one_endpoint_alone_gets_two_thirds_of_its_host(lab: Lab) -> None:
    lab.limits = replace(LIMITS, concurrency=1000, host_concurrency=24)
    assert len(await begun(lab, [await lab.send(HANGING) for _ in range(30)])) == 16
    held = await lab.held(await lab.send(HANGING))
    assert held.reason == "host_busy"
    assert (await lab.queue.webhooks.host(HANGING)).sending == 16


async def test_no_endpoint_gets_more_than_its_share(lab: Lab) -> None:
    lab.limits = replace(LIMITS, concurrency=1000, host_concurrency=12)
    urls = [f"{HOST}/{n}" for n in range(3)]
    held: dict[str, int] = dict.fromkeys(urls, 0)
    # In rounds, so that all of them always have a delivery that waits.
    for _ in range(12):
        for url in urls:
            held[url] += len(await begun(lab, [await lab.send(url)]))
    assert max(held.values()) <= 12 // 3
    assert min(held.values()) >= 3


async def test_a_freed_slot_goes_to_who_waits_longest_not_back(lab: Lab) -> None:
    lab.limits = replace(LIMITS, concurrency=4, host_concurrency=4)
    busy = await begun(lab, [await lab.send(HANGING) for _ in range(8)])
    await lab.go(await lab.send(f"{WELL}/0"))
    assert len(busy) == 3
    waiting = []
    for n in range(1, 4):
        await lab.tick()
        waiting.append(await lab.send(f"{WELL}/{n}"))
        assert (await lab.held(waiting[-1])).reason == "host_busy"
    assert (await lab.queue.webhooks.host(HANGING)).waiting == 4
    for claimed, next_ in zip(busy, list(waiting), strict=True):
        await postpone(lab, waiting)
        await lab.end(claimed, status=200)
        assert await lab.due_in_s(next_) <= 0
        await lab.go(next_)
        waiting.remove(next_)


async def test_a_busy_host_delays_no_other_port_or_name(lab: Lab) -> None:
    lab.limits = replace(LIMITS, host_concurrency=1)
    await lab.go(await lab.send(HANGING))
    assert (await lab.held(await lab.send(WELL))).reason == "host_busy"
    await lab.go(await lab.send("https://hooks.example.com:8443/well"))
    await lab.go(await lab.send("https://other.example.com/well"))


async def test_slots_of_a_host_expire_with_a_dead_worker(lab: Lab) -> None:
    lab.limits = replace(LIMITS, host_concurrency=1, slot_s=0.001)
    await lab.go(await lab.send(HANGING))
    await lab.tick()
    await lab.tick()
    await lab.go(await lab.send(WELL))


async def test_a_removed_job_gives_its_slot_of_the_host_back(lab: Lab) -> None:
    lab.limits = replace(LIMITS, host_concurrency=1)
    id_ = await lab.send(HANGING)
    await lab.go(id_)
    await lab.stores.client.delete(lab.stores.keys.job(f"webhook:{id_}"))
    await lab.stores.attempts.end_jobless(seen_s=0, most=10)
    await lab.go(await lab.send(WELL))


async def test_idle_endpoints_and_hosts_are_forgotten(lab: Lab) -> None:
    lab.limits = replace(LIMITS, host_concurrency=1, rate_per_s=1000.0)
    claimed = await lab.go(await lab.send(HANGING))
    await lab.held(await lab.send(WELL))
    await lab.end(claimed, status=429, retry_after_s=30)
    keys, client = lab.stores.keys, lab.stores.client
    endpoint, host = endpoint_of(HANGING, None), host_of(HANGING)
    for key in (keys.webhook_limits(endpoint), keys.webhook_line(host)):
        assert 0 < await client.pttl(key) <= 86_400_000
    assert await client.pttl(keys.webhook_host(host)) != -1


async def postpone(lab: Lab, ids: list[str]) -> None:
    """As the engine does when it returns a job to its queue with a delay."""
    later = {f"webhook:{id_}": 4e12 for id_ in ids}
    await lab.stores.client.zadd(lab.stores.keys.queue(), later, xx=True)


@pytest.mark.parametrize(("endpoints", "slots"), [(2, 4), (3, 7), (6, 3)])
async def test_a_host_is_shared_equally_while_all_wait(
    lab: Lab, endpoints: int, slots: int
) -> None:
    """All endpoints always have work; attempts end in any order."""
    lab.limits = replace(LIMITS, concurrency=1000, host_concurrency=slots)
    rng, running = random.Random(1), list[tuple[int, ClaimedDelivery]]()
    waiting: dict[int, str] = {}
    served = [0] * endpoints
    for step in range(30):
        for n in range(endpoints):
            if n not in waiting:
                waiting[n] = await lab.send(f"{HOST}/{n}")
            if await lab.due_in_s(waiting[n]) <= 0.001:
                found = await lab.claim(waiting[n])
                if isinstance(found, Throttled):
                    assert found.reason == "host_busy"
                    await postpone(lab, [waiting[n]])
                else:
                    del waiting[n]
                    served[n] += 1
                    running.append((n, found))
        held = [sum(n == m for m, _ in running) for n in range(endpoints)]
        assert sum(held) <= slots
        if step >= 10:
            assert max(held) <= -(-slots // endpoints)
        _, claimed = running.pop(rng.randrange(len(running)))
        await lab.end(claimed, status=200)
    assert min(served) >= 30 // endpoints // 2
