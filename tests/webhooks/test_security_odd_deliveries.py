"""A delivery that somebody changed in the server ends by name; the others are delivered."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.queues import open_queue, stores_of
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from tests.webhooks.test_end_to_end import OK, Headers, ended, receiver
from worker import JobQueue

pytestmark = pytest.mark.integration

# Fields of the delivery's hash, set so; None deletes one.
FORGED: list[dict[str, Any]] = [
    {"url": None},
    {"url": b"\xff"},
    {"event_type": None},
    {"event_type": b"\xff"},
    {"body": None},
    {"headers": b"\xc1"},
    {"headers": b"\x93abc"},
    {"headers": b"\x81\xa4host\xa1x"},
    {"headers": b"\x81\xa1a\xa4x\r\ny"},
]
# These are passed over: what is odd about them decides nothing.
HARMLESS: list[dict[str, Any]] = [
    {"uncharged": "x", "internal_failures": "x"},
    {"attempts": "x"},
    {"after": "x", "reserved": "x", "next": "x"},
    {"deadline": "x"},
    {"replays": "x"},
]


async def forge(queue: JobQueue, id_: str, fields: dict[str, Any]) -> None:
    for name, value in fields.items():
        if value is None:
            await stores_of(queue).client.hdel(stores_of(queue).keys.webhook(id_), name)
        else:
            await stores_of(queue).client.hset(stores_of(queue).keys.webhook(id_), name, value)


@pytest.mark.parametrize("fields", FORGED, ids=str)
async def test_a_delivery_that_cannot_be_read_is_dead_as_undecodable(
    private_valkey_url: str, fields: dict[str, Any]
) -> None:
    async def take(_path: str, _headers: Headers, _body: bytes) -> bytes:
        return OK

    async with receiver(take) as url, open_queue(quick_settings(private_valkey_url)) as queue:
        bad = await queue.send_webhook(url, {}, event_type="x")
        others = [await queue.send_webhook(url, {}, event_type="x") for _ in range(3)]
        await forge(queue, bad, fields)
        async with running_worker(quick_settings(private_valkey_url)):
            for id_ in others:
                assert (await ended(queue, id_)).state == "delivered"
            letter = await eventually(lambda: queue.dead.get(f"webhook:{bad}"))
    assert letter.reason == "undecodable"
    async with open_queue(quick_settings(private_valkey_url)) as queue:
        state = await stores_of(queue).client.hget(stores_of(queue).keys.webhook(bad), "state")
        assert state == b"dead"


@pytest.mark.parametrize("fields", HARMLESS, ids=str)
async def test_a_number_that_is_none_delays_no_delivery(
    private_valkey_url: str, fields: dict[str, Any]
) -> None:
    async def take(_path: str, _headers: Headers, _body: bytes) -> bytes:
        return OK

    async with receiver(take) as url, open_queue(quick_settings(private_valkey_url)) as queue:
        odd = await queue.send_webhook(url, {}, event_type="x")
        await forge(queue, odd, fields)
        async with running_worker(quick_settings(private_valkey_url)):

            async def state() -> bool:
                found = await stores_of(queue).client.hget(
                    stores_of(queue).keys.webhook(odd), "state"
                )
                return bool(found in (b"delivered", b"dead"))

            await eventually(state)


@pytest.mark.parametrize(
    "what",
    [
        "webhook",
        "webhook-attempts",
        "webhook-limits",
        "webhook-slots",
        "webhook-host",
        "webhook-line",
    ],
)
async def test_a_delivery_whose_keys_are_lists_stops_no_other(
    private_valkey_url: str, what: str
) -> None:
    async def take(_path: str, _headers: Headers, _body: bytes) -> bytes:
        return OK

    settings = quick_settings(private_valkey_url)
    async with (
        receiver(take) as url,
        receiver(take) as other_url,
        open_queue(settings) as queue,
    ):
        bad = await queue.send_webhook(url, {}, event_type="x")
        record = stores_of(queue).keys.webhook(bad)
        endpoint, host = await stores_of(queue).client.hmget(record, "endpoint", "host")
        owners = {"webhook-limits": endpoint, "webhook-slots": endpoint}
        owners |= {"webhook-host": host, "webhook-line": host}
        name = owners.get(what, bad.encode()).decode()
        key = f"{stores_of(queue).keys.prefix}{what}:{name}"
        await stores_of(queue).client.delete(key)
        if what == "webhook-attempts":
            await stores_of(queue).client.set(key, "x")
        else:
            await stores_of(queue).client.rpush(key, "x")
        others = [await queue.send_webhook(other_url, {}, event_type="x") for _ in range(3)]
        async with running_worker(settings):
            for id_ in others:
                assert (await ended(queue, id_)).state == "delivered"

            async def over() -> bool:
                letter = await queue.dead.get(f"webhook:{bad}")
                return letter is not None or not await stores_of(queue).client.exists(
                    stores_of(queue).keys.job(f"webhook:{bad}")
                )

            await eventually(over)
            (after,) = [await queue.send_webhook(other_url, {}, event_type="x")]
            assert (await ended(queue, after)).state == "delivered"
