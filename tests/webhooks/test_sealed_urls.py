"""With LETTA_WEBHOOK_ENCRYPTION_KEY, no URL is stored in clear: its path or query may be a token."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

import pytest

from cache.encoding import codec
from tests.support.options import options_of
from tests.support.queues import open_queue, queue_of, stores_of
from tests.support.stored import everything_stored
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from tests.webhooks.test_end_to_end import Headers, ended, receiver
from tests.webhooks.test_limits import Lab
from worker.webhooks.deliveries import Delivery, Selection
from worker.webhooks.policy import DeliveryState

pytestmark = pytest.mark.integration

KEY = base64.b64encode(b"k" * 32).decode()
URL = "https://hooks.example.com/T0K3N-path?token=T0K3N-query"


@pytest.fixture
async def lab(client: Any, prefix: str) -> Lab:
    return Lab(queue_of(client, prefix, options_of(webhook_encryption_key=KEY)))


async def test_no_url_is_stored_in_clear(lab: Lab) -> None:
    hooks = lab.queue.webhooks
    await lab.attempt(await lab.send(URL), status=500)
    await lab.attempt(await lab.send(URL, endpoint_id="t1"), status=410)
    await lab.attempt(await lab.send(URL), status=410)
    await hooks.disable(URL + "-by-hand")
    assert "T0K3N" not in await everything_stored(lab.stores.client, lab.stores.keys.prefix)
    names = {found.name for found in await hooks.disabled_endpoints()}
    assert names == {URL, URL + "-by-hand"}
    assert (await hooks.endpoint(URL)).name == URL


async def test_a_sealed_url_is_shown_and_found(lab: Lab) -> None:
    id_ = await lab.send(URL)
    other = await lab.send(URL + "2")
    assert (await lab.queue.delivery(id_)).url == URL
    wanted = Selection(states=(DeliveryState.PENDING,), url=URL)
    assert await lab.queue.webhooks.find(wanted) == [id_]
    for each in (id_, other):
        await lab.attempt(each, error="x", permanent=True)
    assert await lab.queue.webhooks.find(Selection(url=URL)) == [id_]


async def test_who_has_no_key_sees_the_host_only(client: Any, prefix: str, lab: Lab) -> None:
    id_ = await lab.send(URL)
    await lab.attempt(await lab.send(URL), status=500)
    blind = queue_of(client, prefix)
    found = await blind.delivery(id_)
    assert (found.url, found.host) == ("***", "hooks.example.com:443")
    assert [endpoint.name for endpoint in await blind.webhooks.failing_endpoints()] == ["***"]
    # What was stored before the key was set is still read.
    clear = await blind.send_webhook(URL, {}, event_type="x")
    assert (await lab.queue.delivery(clear)).url == URL


async def test_a_sealed_url_is_delivered_and_its_echo_is_not_kept(private_valkey_url: str) -> None:
    async def echo(path: str, _headers: Headers, _body: bytes) -> bytes:
        body = f"you asked for {path}".encode()
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)

    settings = quick_settings(private_valkey_url, webhook_encryption_key=KEY)
    async with receiver(echo) as url, open_queue(settings) as queue, running_worker(settings):
        token = f"{url}/T0K3N?token=T0K3N-query"
        id_ = await queue.send_webhook(token, {}, event_type="x", on_end="note_callback")
        found = await ended(queue, id_)
        assert (found.state, found.url) == ("delivered", token)
        assert found.attempts[0].response == b"you asked for ***"
        client = stores_of(queue).client

        async def reported() -> bool:
            keys = [key async for key in client.scan_iter("*webhook-ended:0:*")]
            return any(b"job:" in key or b"result:" in key for key in keys)

        await eventually(reported)
        assert "T0K3N" not in await everything_stored(client)


async def test_a_url_that_was_moved_to_another_delivery_is_not_sent_to(
    private_valkey_url: str,
) -> None:
    settings = quick_settings(private_valkey_url, webhook_encryption_key=KEY)
    async with open_queue(settings) as queue:
        client, keys = stores_of(queue).client, stores_of(queue).keys
        first = await queue.send_webhook("http://127.0.0.1:9/a", {}, event_type="x", delay_s=60)
        second = await queue.send_webhook("http://127.0.0.1:9/b", {}, event_type="x")
        moved = await client.hget(keys.webhook(first), "url")
        await client.hset(keys.webhook(second), "url", moved)
        assert (await queue.delivery(second)).url == "***"
        async with running_worker(settings):

            async def tried() -> Delivery | None:
                found = await queue.delivery(second)
                return found if found.state == "waiting" else None

            found = await eventually(tried)
    assert found.attempts[0].error == "secret_unusable"
    assert found.created_at <= datetime.now(UTC)


async def test_the_callback_of_an_llm_request_is_sealed_too(lab: Lab) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    await lab.queue.submit_llm_request(
        body, provider="openai", endpoint="chat/completions", webhook_url=URL
    )
    prepared = lab.stores.prepared
    job = codec.decode(prepared.callback_body(URL))
    assert prepared.callback_url(job["a"][0]) == URL
    client = lab.stores.client
    (key,) = [key async for key in client.scan_iter(f"{lab.stores.keys.prefix}llm:callback:*")]
    stored = await client.hgetall(key)
    assert stored
    assert "T0K3N" not in repr((stored, job))
