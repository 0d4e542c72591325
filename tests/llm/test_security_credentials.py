"""Tests that credentials are sent only to their hosts, even if the server's data is forged."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest

from cache import Keyring
from cache.encoding import codec
from tests.support.queues import open_queue, stores_of
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from tests.webhooks.test_end_to_end import OK, Headers, receiver
from worker import RequestFailed
from worker.errors import InvalidArgument, TargetForbidden, Undecodable
from worker.llm.grouping import Group
from worker.llm.providers import AnthropicProvider, OpenAIProvider
from worker.llm.stored_groups import decode_group
from worker.webhooks.deliveries import Delivery
from worker.webhooks.secrets import DeliverySecrets

pytestmark = pytest.mark.integration

KEY = b"k" * 32
FORGED_ENDPOINTS = [
    ".evil.test/v1/messages",
    "@evil.test/v1/messages",
    ":8443/v1/messages",
    "evil.test/v1/messages",
    "\\evil.test",
    "",
]


@pytest.mark.parametrize("provider_class", [OpenAIProvider, AnthropicProvider])
@pytest.mark.parametrize("base_url", ["https://api.provider.test", "https://api.provider.test/"])
@pytest.mark.parametrize("endpoint", FORGED_ENDPOINTS)
async def test_a_forged_endpoint_gets_no_key(
    provider_class: Any, base_url: str, endpoint: str
) -> None:
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(200, stream=httpx.ByteStream(b"{}"))

    client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    provider = provider_class(client, base_url=base_url, api_key="secret", timeout_s=5)
    with pytest.raises(TargetForbidden):
        await provider.complete(Group("p", endpoint, "m"), b"{}")
    assert not asked


@pytest.mark.parametrize(
    "row",
    [
        ["anthropic", ".evil.test/v1/messages", "m"],
        ["anthropic", "@evil.test", "m"],
        ["anthropic", "/v1/../../x", "m"],
        ["anthropic", "v1/messages", "m"],
        ["openai", "/v1/files", "m"],
        ["nobody", "/v1/messages", "m"],
        ["openai", "/v1/embeddings", ""],
        ["openai", "/v1/embeddings", 5],
        ["openai", 5, "m"],
        [["openai"], "/v1/embeddings", "m"],
        ["openai"],
        "text",
        None,
        5,
    ],
)
def test_a_forged_stored_group_is_refused(row: Any) -> None:
    with pytest.raises(Undecodable):
        decode_group(codec.encode(row))


async def test_a_request_whose_endpoint_was_forged_ends_as_undecodable(
    private_valkey_url: str,
) -> None:
    asked: list[str] = []

    async def take(path: str, _headers: Headers, _body: bytes) -> bytes:
        asked.append(path)
        return OK

    async with receiver(take) as url:
        settings = quick_settings(
            private_valkey_url, anthropic_base_url=url, anthropic_api_key="secret"
        )
        async with open_queue(settings) as queue:
            body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
            id_ = await queue.submit_llm_request(
                body, provider="anthropic", endpoint="/v1/messages", urgent=True
            )
            forged = codec.encode(["anthropic", "0@127.0.0.1/v1/messages", "m"])
            await stores_of(queue).client.hset(
                stores_of(queue).keys.llm_request(id_), "group", forged
            )
            async with running_worker(settings):
                with pytest.raises(RequestFailed) as failed:
                    await queue.llm_result(id_, timeout_s=20)
                assert failed.value.kind == "undecodable"
                letter = await eventually(
                    lambda: queue.dead.get(stores_of(queue).prepared.single(id_).id)
                )
    assert letter.reason == "undecodable"
    assert not asked


@pytest.mark.parametrize("field", ["url", "secret"])
async def test_a_sealed_secret_is_sent_to_no_other_url(private_valkey_url: str, field: str) -> None:
    seen: list[Headers] = []

    async def take(_path: str, headers: Headers, _body: bytes) -> bytes:
        seen.append(headers)
        return OK

    settings = quick_settings(
        private_valkey_url, webhook_encryption_key=base64.b64encode(KEY).decode()
    )
    async with receiver(take) as evil, open_queue(settings) as queue:
        mine = await queue.send_webhook("http://127.0.0.1:9/", {}, event_type="x", bearer="b")
        other = await queue.send_webhook(f"{evil}/a", {}, event_type="x", bearer="c")
        hash_ = stores_of(queue).keys.webhook(mine)
        if field == "url":
            await stores_of(queue).client.hset(hash_, "url", f"{evil}/stolen")
        else:
            taken = await stores_of(queue).client.hget(hash_, "secret")
            await stores_of(queue).client.hset(
                stores_of(queue).keys.webhook(other), "secret", taken
            )

        async def tried() -> Delivery | None:
            found = await queue.delivery(mine if field == "url" else other)
            return found if found.attempts and found.attempts[0].error != "interrupted" else None

        async with running_worker(settings):
            found = await eventually(tried)
    assert found.attempts[0].error == "secret_unusable"
    assert all("Bearer b" not in headers.values() for headers in seen)


async def test_a_replay_with_new_secrets_is_bound_to_the_stored_url(
    private_valkey_url: str,
) -> None:
    seen: list[Headers] = []

    async def take(_path: str, headers: Headers, _body: bytes) -> bytes:
        seen.append(headers)
        return OK

    settings = quick_settings(
        private_valkey_url, webhook_encryption_key=base64.b64encode(KEY).decode()
    )
    secret = "whsec_" + base64.b64encode(b"s" * 32).decode()

    async with receiver(take) as url, open_queue(settings) as queue, running_worker(settings):
        id_ = await queue.send_webhook(url, {}, event_type="x", secrets=[secret])

        async def delivered() -> bool:
            return (await queue.delivery(id_)).state == "delivered"

        await eventually(delivered)
        await queue.webhooks.replay(id_, secrets=[secret])

        async def again() -> bool:
            return len(seen) == 2

        await eventually(again)


@pytest.mark.parametrize(
    ("sealed_for", "opened_for"),
    [
        (("a", "https://x.test"), ("a", "https://y.test")),
        (("a", "https://x.test"), ("b", "https://x.test")),
        (("a", "b\nc"), ("a\nb", "d")),
    ],
)
def test_a_secret_opens_only_with_its_delivery_and_url(
    sealed_for: tuple[str, str], opened_for: tuple[str, str]
) -> None:
    box = DeliverySecrets(Keyring({"a": KEY}))
    sealed = box.seal("secret", owner=sealed_for[0], url=sealed_for[1])
    assert box.open(sealed, owner=sealed_for[0], url=sealed_for[1]) == "secret"
    with pytest.raises(InvalidArgument):
        box.open(sealed, owner=opened_for[0], url=opened_for[1])


@pytest.mark.parametrize("sealed", [b"", b"short", b"x" * 12, b"x" * 200])
def test_bytes_that_were_never_sealed_are_refused_by_name(sealed: bytes) -> None:
    with pytest.raises(InvalidArgument):
        DeliverySecrets(Keyring({"a": KEY})).open(sealed, owner="a", url="https://x.test")


def test_secrets_open_with_every_key_of_the_keyring_until_it_leaves() -> None:
    old, new = Keyring({"1": KEY}), Keyring({"2": b"n" * 32, "1": KEY})
    sealed = DeliverySecrets(old).seal("s", owner="a", url="u")
    assert DeliverySecrets(new).open(sealed, owner="a", url="u") == "s"
    sealed = DeliverySecrets(new).seal("s", owner="a", url="u")
    with pytest.raises(InvalidArgument, match="LETTA_WEBHOOK_ENCRYPTION_KEY"):
        DeliverySecrets(old).open(sealed, owner="a", url="u")
