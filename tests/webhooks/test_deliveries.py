"""Tests webhooks with a real worker and a real receiver in its own process."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook

from tests.support.queues import open_queue, stores_of
from tests.support.servers import raw_server
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import (
    InvalidArgument,
    InvalidWebhookURL,
    JobQueue,
    NotFound,
    NotSerializable,
    PayloadTooLarge,
)
from worker.demo.serving import running
from worker.webhooks.deliveries import Delivery

pytestmark = pytest.mark.integration

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
OWN = "whsec_" + base64.b64encode(b"o" * 32).decode()
KEY = base64.b64encode(b"k" * 32).decode()


@pytest.fixture(scope="module")
def receiver() -> Iterator[str]:
    with running("worker.demo.receiver") as url:
        yield url


async def ended(queue: JobQueue, id_: str) -> Delivery:
    async def look() -> Delivery | None:
        found = await queue.delivery(id_)
        return found if found.state in {"delivered", "dead"} else None

    return await eventually(look)


async def attempts_at(receiver: str, id_: str) -> list[dict[str, Any]]:
    async with httpx.AsyncClient(trust_env=False) as client:
        rows: list[dict[str, Any]] = (await client.get(f"{receiver}/seen")).json().get(id_, [])
    return rows


async def test_a_webhook_is_posted_once_signed_with_the_exact_body(
    private_valkey_url: str, receiver: str
) -> None:
    settings = quick_settings(private_valkey_url, webhook_secret=SECRET)
    async with open_queue(settings) as queue, running_worker(settings):
        id_ = await queue.send_webhook(
            f"{receiver}/ok", {"name": "Zoë", "n": 1}, event_type="agent.updated"
        )
        delivery = await ended(queue, id_)
    assert delivery.state == "delivered"
    assert [a.status for a in delivery.attempts] == [200]
    assert delivery.attempts[0].ms is not None
    (seen,) = await attempts_at(receiver, id_)
    body = base64.b64decode(seen["body"])
    assert body == '{"name":"Zoë","n":1}'.encode()
    assert seen["headers"]["webhook-id"] == id_
    assert seen["headers"]["webhook-event-type"] == "agent.updated"
    assert Webhook(SECRET).verify(body, seen["headers"]) == {"name": "Zoë", "n": 1}


async def test_5xx_is_retried_with_the_same_id_until_success(
    private_valkey_url: str, receiver: str
) -> None:
    settings = quick_settings(private_valkey_url)
    async with open_queue(settings) as queue, running_worker(settings):
        id_ = await queue.send_webhook(f"{receiver}/flaky/2", b"raw", event_type="x")
        delivery = await ended(queue, id_)
    assert [a.status for a in delivery.attempts] == [503, 503, 200]
    assert delivery.attempt_count == 3
    assert [row["headers"]["webhook-id"] for row in await attempts_at(receiver, id_)] == [id_] * 3


async def test_a_refusing_receiver_ends_as_dead_after_its_attempts(
    private_valkey_url: str, receiver: str
) -> None:
    settings = quick_settings(private_valkey_url, webhook_max_attempts=4)
    async with open_queue(settings) as queue, running_worker(settings):
        gone = await queue.send_webhook(f"{receiver}/status/410", {}, event_type="x")
        broken = await queue.send_webhook(f"{receiver}/status/500", {}, event_type="x")
        wrong = await queue.send_webhook(f"{receiver}/status/404", {}, event_type="x")
        counts = [(await ended(queue, id_)).attempt_count for id_ in (gone, broken, wrong)]
        assert (await queue.delivery(broken)).state == "dead"
        assert await stores_of(queue).client.pttl(stores_of(queue).keys.webhook(broken)) > 0
    assert counts == [1, 4, 3]


async def test_a_redirect_is_not_followed(private_valkey_url: str, receiver: str) -> None:
    settings = quick_settings(private_valkey_url, webhook_max_attempts=1)
    async with open_queue(settings) as queue, running_worker(settings):
        id_ = await queue.send_webhook(f"{receiver}/status/302", {}, event_type="x")
        assert (await ended(queue, id_)).state == "dead"
    assert len(await attempts_at(receiver, id_)) == 1


async def test_a_refused_connection_is_recorded_and_retried(private_valkey_url: str) -> None:
    settings = quick_settings(private_valkey_url, webhook_max_attempts=2)
    async with open_queue(settings) as queue, running_worker(settings):
        id_ = await queue.send_webhook("http://127.0.0.1:1/x", {}, event_type="x")
        delivery = await ended(queue, id_)
    assert [a.error for a in delivery.attempts] == ["connect", "connect"]
    assert delivery.state == "dead"


async def test_a_receiver_that_never_answers_costs_only_the_timeout(
    private_valkey_url: str,
) -> None:
    async def hang(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await reader.read()

    settings = quick_settings(private_valkey_url, webhook_max_attempts=1, webhook_timeout_s=0.2)
    async with (
        raw_server(hang) as port,
        open_queue(settings) as queue,
        running_worker(settings),
    ):
        id_ = await queue.send_webhook(f"http://127.0.0.1:{port}/", {}, event_type="x")
        delivery = await ended(queue, id_)
    assert [a.error for a in delivery.attempts] == ["timeout"]


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
async def test_without_permission_no_private_address_is_connected_to(
    private_valkey_url: str, host: str
) -> None:
    connected = asyncio.Event()

    async def take(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        connected.set()

    settings = quick_settings(private_valkey_url, webhook_allow_cidrs="10.99.0.0/16")
    async with (
        raw_server(take, None) as port,
        open_queue(settings) as queue,
        running_worker(settings),
    ):
        id_ = await queue.send_webhook(f"http://{host}:{port}/", {}, event_type="x")
        delivery = await ended(queue, id_)
    assert [a.error for a in delivery.attempts] == ["target_forbidden"]
    assert not connected.is_set()


async def test_a_webhook_id_is_sent_once_however_often_it_is_given(
    private_valkey_url: str, receiver: str
) -> None:
    settings = quick_settings(private_valkey_url)
    async with open_queue(settings) as queue, running_worker(settings):
        for _ in range(3):
            id_ = await queue.send_webhook(
                f"{receiver}/ok", {}, event_type="x", webhook_id="run-17:completed"
            )
            assert id_ == "run-17:completed"
        await ended(queue, id_)
        await queue.send_webhook(f"{receiver}/ok", {}, event_type="x", webhook_id=id_)
        marker = await queue.send_webhook(f"{receiver}/ok", {}, event_type="x")
        await ended(queue, marker)
    assert len(await attempts_at(receiver, id_)) == 1


async def test_a_deliverys_own_secret_signs_and_is_stored_sealed(
    private_valkey_url: str, receiver: str
) -> None:
    settings = quick_settings(private_valkey_url, webhook_secret=SECRET, webhook_encryption_key=KEY)
    async with open_queue(settings) as queue:
        id_ = await queue.send_webhook(f"{receiver}/ok", {"a": 1}, event_type="x", secret=OWN)
        stored = await stores_of(queue).client.hgetall(stores_of(queue).keys.webhook(id_))
        dumped = b"".join(stored.values())
        assert OWN.encode() not in dumped
        assert base64.b64decode(OWN.removeprefix("whsec_")) not in dumped
        async with running_worker(settings):
            await ended(queue, id_)
        assert not await stores_of(queue).client.hexists(
            stores_of(queue).keys.webhook(id_), "secret"
        )
    (seen,) = await attempts_at(receiver, id_)
    assert Webhook(OWN).verify(base64.b64decode(seen["body"]), seen["headers"]) == {"a": 1}


async def test_a_delayed_webhook_shows_its_next_attempt(private_valkey_url: str) -> None:
    async with open_queue(quick_settings(private_valkey_url)) as queue:
        id_ = await queue.send_webhook("https://example.com/", {}, event_type="x", delay_s=60)
        delivery = await queue.delivery(id_)
    assert delivery.state == "pending"
    assert delivery.next_attempt_at is not None
    # The two times are read one after the other.
    assert 59 <= (delivery.next_attempt_at - delivery.created_at).total_seconds() <= 90
    assert json.loads(json.dumps(delivery.to_dict()))["state"] == "pending"


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "ftp://example.com", "http://", "https:///path", "javascript:alert(1)",
        "http://user:pw@example.com/", "http://example.com:99999/", "http://example.com:0/",
        "http://exam ple.com/", "http://example.com/\r\nX: 1", "http://[::1", "http://a/" + "x" * 2048,
    ],
)  # fmt: skip
async def test_an_invalid_webhook_url_is_refused_at_the_call(valkey_url: str, url: str) -> None:
    async with open_queue(quick_settings(valkey_url)) as queue:
        with pytest.raises(InvalidWebhookURL) as caught:
            await queue.send_webhook(url, {}, event_type="x")
    assert ":pw@" not in str(caught.value)


async def test_every_other_bad_argument_is_refused_at_the_call(private_valkey_url: str) -> None:
    async with open_queue(quick_settings(private_valkey_url, webhook_max_body_bytes=64)) as queue:
        before = await stores_of(queue).client.dbsize()

        async def send(payload: Any = None, **more: Any) -> None:
            arguments: dict[str, Any] = {"event_type": "x", **more}
            await queue.send_webhook("https://example.com/", payload, **arguments)

        with pytest.raises(PayloadTooLarge, match="LETTA_WEBHOOK_MAX_BODY_BYTES"):
            await send("x" * 64)
        with pytest.raises(NotSerializable):
            await send(object())
        with pytest.raises(NotSerializable):
            await send(float("nan"))
        with pytest.raises(NotSerializable, match=r"a key that is no text: 1; pass str\(key\)"):
            await send({"a": [{1: "b", "1": "c"}]})  # it would be sent as one name twice
        with pytest.raises(InvalidArgument, match="event_type"):
            await send(event_type="a\r\nb: c")
        with pytest.raises(InvalidArgument, match="webhook_id"):
            await send(webhook_id="a b")
        with pytest.raises(InvalidArgument, match="delay_s"):
            await send(delay_s=-1)
        with pytest.raises(InvalidArgument, match="LETTA_WEBHOOK_ENCRYPTION_KEY"):
            await send(secret=OWN)
        with pytest.raises(InvalidArgument, match="whsec_") as caught:
            await send(secret="hunter2")
        assert "hunter2" not in str(caught.value)
        with pytest.raises(NotFound):
            await queue.delivery("msg_unknown")
        assert await stores_of(queue).client.dbsize() == before
