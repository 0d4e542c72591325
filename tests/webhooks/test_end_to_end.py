"""Tests what receivers and senders of webhooks get, with a real worker."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.support.queues import open_queue, queue_of, stores_of
from tests.support.stored import everything_stored
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import InvalidArgument, JobQueue
from worker.webhooks.deliveries import Delivery

pytestmark = pytest.mark.integration

KEY = base64.b64encode(b"k" * 32).decode()
SEED = b"s" * 32
ENDED = {"delivered", "dead", "disabled"}

Headers = dict[str, str]
Handler = Callable[[str, Headers, bytes], Awaitable[bytes]]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


@asynccontextmanager
async def receiver(handler: Handler, host: str = "127.0.0.1") -> AsyncIterator[str]:
    """A small HTTP server whose handler returns the whole response."""
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                exact = {
                    line.split(": ", 1)[0].lower(): line.split(": ", 1)[1]
                    for line in head[1:]
                    if line
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                writer.write(await handler(head[0].split()[1], exact, body))
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async with await asyncio.start_server(accept, host, 0) as server:
        yield f"http://{host}:{server.sockets[0].getsockname()[1]}"
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks)


async def ended(queue: JobQueue, id_: str) -> Delivery:
    async def look() -> Delivery | None:
        found = await queue.delivery(id_)
        return found if found.state in ENDED else None

    return await eventually(look)


async def note_end(_ctx: dict[str, Any], delivery: dict[str, Any]) -> dict[str, Any]:
    return delivery


async def test_headers_bearer_and_signatures_arrive_and_are_stored_sealed(
    private_valkey_url: str,
) -> None:
    seen: list[tuple[Headers, bytes]] = []

    async def take(_path: str, headers: Headers, body: bytes) -> bytes:
        seen.append((headers, body))
        return OK

    settings = quick_settings(private_valkey_url, webhook_encryption_key=KEY)
    private = "whsk_" + base64.b64encode(SEED).decode()
    async with receiver(take) as url, open_queue(settings) as queue:
        id_ = await queue.send_webhook(
            url, {"step_id": "s1"}, event_type="x", secrets=[private], bearer="step-key-123",
            headers={"X-Tenant": "Zoe", "X-Api-Key": "hidden-456"},
        )  # fmt: skip
        stored = b"".join(
            (await stores_of(queue).client.hgetall(stores_of(queue).keys.webhook(id_))).values()
        )
        for secret in (b"step-key-123", b"hidden-456", private.encode(), SEED):
            assert secret not in stored
        async with running_worker(settings):
            await ended(queue, id_)
    ((headers, body),) = seen
    assert headers["authorization"] == "Bearer step-key-123"
    assert (headers["x-tenant"], headers["x-api-key"]) == ("Zoe", "hidden-456")
    signature = headers["webhook-signature"].removeprefix("v1a,")
    signed = f"{id_}.{headers['webhook-timestamp']}.".encode() + body
    public = Ed25519PrivateKey.from_private_bytes(SEED).public_key()
    public.verify(base64.b64decode(signature), signed)


async def test_a_worker_adds_its_bearer_token_of_exactly_this_url(private_valkey_url: str) -> None:
    seen: dict[str, str | None] = {}

    async def take(path: str, headers: Headers, _body: bytes) -> bytes:
        token = seen[path] = headers.get("authorization")
        echo = (token or "").removeprefix("Bearer ").encode()
        return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(echo), echo)

    async with receiver(take) as url:
        tokens = f"worker-token-1=@{url}/step worker-token-2@{url}/own"
        plain = quick_settings(private_valkey_url, webhook_bearers=tokens)
        async with open_queue(plain) as queue, running_worker(plain):
            for path in ("/step", "/step?more"):
                id_ = await queue.send_webhook(f"{url}{path}", {}, event_type="x")
                assert "worker-token" not in repr(await ended(queue, id_))
            assert "worker-token" not in await everything_stored(stores_of(queue).client)
        sealing = quick_settings(
            private_valkey_url, webhook_bearers=tokens, webhook_encryption_key=KEY
        )
        async with open_queue(sealing) as queue, running_worker(sealing):
            await ended(
                queue,
                await queue.send_webhook(f"{url}/own", {}, event_type="x", bearer="its-own"),
            )
    assert seen == {
        "/step": "Bearer worker-token-1=",
        "/step?more": None,
        "/own": "Bearer its-own",
    }


async def test_the_beginning_of_each_answer_is_kept_with_its_attempt(
    private_valkey_url: str,
) -> None:
    answers = [b"HTTP/1.1 500 x\r\ncontent-length: 9\r\n\r\n" + b"not today", OK]

    async def take(_path: str, _headers: Headers, _body: bytes) -> bytes:
        return answers.pop(0)

    settings = quick_settings(private_valkey_url, webhook_keep_response_bytes=5)
    async with receiver(take) as url, open_queue(settings) as queue, running_worker(settings):
        found = await ended(queue, await queue.send_webhook(url, {}, event_type="x"))
    assert [a.response for a in found.attempts] == [b"not t", b""]
    assert found.to_dict()["attempts"][0]["response"] == "not t"


async def test_the_on_end_function_is_called_with_the_delivery(private_valkey_url: str) -> None:
    async def refuse(_path: str, _headers: Headers, _body: bytes) -> bytes:
        return b"HTTP/1.1 410 Gone\r\ncontent-length: 4\r\n\r\ngone"

    settings = quick_settings(
        private_valkey_url, worker_functions=f"{__name__}:note_end", webhook_on_end="note_end"
    )
    async with receiver(refuse) as url, open_queue(settings) as queue, running_worker(settings):
        id_ = await queue.send_webhook(url, {}, event_type="x")

        async def reported() -> Any:
            keys = await stores_of(queue).client.keys(
                stores_of(queue).keys.result("webhook-ended:*")
            )
            return keys and keys[0].decode().removeprefix(stores_of(queue).keys.result(""))

        result = await queue.jobs.get(await eventually(reported)).result(timeout_s=10)
    assert (result["id"], result["state"], result["status"]) == (id_, "dead", 410)
    assert result["attempts"][0]["response"] == "gone"


@pytest.mark.parametrize(
    ("max_jobs", "concurrency", "most"), [(8, 2, 2), (4, None, 2), (1000, None, 16)]
)
async def test_one_hanging_endpoint_delays_no_other(
    private_valkey_url: str, max_jobs: int, concurrency: int | None, most: int
) -> None:
    async def hang(_path: str, _headers: Headers, _body: bytes) -> bytes:
        return await asyncio.Event().wait() and b""

    async def take(_path: str, _headers: Headers, _body: bytes) -> bytes:
        return OK

    settings = quick_settings(
        private_valkey_url, worker_max_jobs=max_jobs, webhook_endpoint_concurrency=concurrency,
        webhook_timeout_s=60, worker_shutdown_grace_s=0,
    )  # fmt: skip
    async with (
        receiver(hang, "127.0.0.2") as bad,
        receiver(take) as good,
        open_queue(settings) as queue,
        running_worker(settings),
    ):
        stuck = [await queue.send_webhook(bad, {}, event_type="x") for _ in range(40)]
        well = [await queue.send_webhook(good, {}, event_type="x") for _ in range(40)]
        for id_ in well:
            assert (await ended(queue, id_)).attempt_count == 1
        counts = [(await queue.delivery(id_)).attempt_count for id_ in stuck]
        assert sum(counts) == most


async def test_a_burst_at_one_endpoint_stays_within_its_slots(
    private_valkey_url: str,
) -> None:
    running = most = 0

    async def take(_path: str, _headers: Headers, _body: bytes) -> bytes:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return OK

    settings = quick_settings(private_valkey_url, webhook_endpoint_concurrency=3)
    async with receiver(take) as url, open_queue(settings) as queue, running_worker(settings):
        ids = [await queue.send_webhook(url, {}, event_type="x") for _ in range(150)]
        found = [await ended(queue, id_) for id_ in ids]
    assert {d.state.value for d in found} == {"delivered"}
    assert {d.attempt_count for d in found} == {1}
    assert most <= 3


async def test_ordered_deliveries_arrive_in_order_though_some_fail_first(
    private_valkey_url: str,
) -> None:
    seen: list[bytes] = []
    failed: set[bytes] = set()

    async def take(_path: str, _headers: Headers, body: bytes) -> bytes:
        if int(body) % 3 == 0 and body not in failed:
            failed.add(body)
            return b"HTTP/1.1 500 x\r\ncontent-length: 0\r\n\r\n"
        seen.append(body)
        return OK

    settings = quick_settings(private_valkey_url)
    async with receiver(take) as url, open_queue(settings) as queue, running_worker(settings):
        ids = [
            await queue.send_webhook(url, b"%d" % n, event_type="x", ordering_key="k")
            for n in range(12)
        ]
        for id_ in ids:
            await ended(queue, id_)
    assert seen == [b"%d" % n for n in range(12)]


async def test_a_ping_is_a_test_event(private_valkey_url: str) -> None:
    seen: list[Any] = []

    async def take(_path: str, headers: Headers, body: bytes) -> bytes:
        seen.append((headers["webhook-event-type"], body))
        return OK

    settings = quick_settings(private_valkey_url)
    async with receiver(take) as url, open_queue(settings) as queue, running_worker(settings):
        await ended(queue, await queue.webhooks.ping(url))
    assert seen == [("ping", b'{"type":"ping"}')]


async def test_a_key_that_does_not_open_a_secret_charges_nothing(private_valkey_url: str) -> None:
    async def take(_path: str, _headers: Headers, _body: bytes) -> bytes:
        return OK

    sender = quick_settings(private_valkey_url, webhook_encryption_key=KEY)
    worker = quick_settings(
        private_valkey_url, webhook_encryption_key=base64.b64encode(b"x" * 32).decode()
    )
    async with receiver(take) as url, open_queue(sender) as queue, running_worker(worker):
        id_ = await queue.send_webhook(url, {}, event_type="x", bearer="b")

        async def tried() -> Delivery | None:
            found = await queue.delivery(id_)
            return found if found.state == "waiting" else None

        found = await eventually(tried)
    assert found.attempts[0].error == "secret_unusable"
    assert found.uncharged_count == found.attempt_count


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"headers": {"host": "x"}}, "is reserved"),
        ({"headers": {"webhook-id": "x"}}, "is reserved"),
        ({"headers": {"a b": "x"}}, "valid header name"),
        ({"headers": {"x-a": "1\r\nx-b: 2"}}, "one line"),
        ({"headers": {f"x-{n}": "" for n in range(33)}}, "at most 32"),
        ({"endpoint_id": "a b"}, "endpoint_id"),
        ({"ordering_key": ""}, "ordering_key"),
        ({"ordering_key": "x" * 257}, "ordering_key"),
        ({"on_end": "a b"}, "job name"),
        ({"secrets": ["whsec_c2hvcnQ="]}, "whsec_"),
        ({"secrets": ["whsk_c2hvcnQ="]}, "whsk_"),
        ({"secrets": ["x"] * 11}, "at most 10"),
        ({"bearer": "k\n"}, "one line"),
    ],
)
async def test_an_invalid_webhook_is_refused_without_repeating_secrets(
    client: Any, prefix: str, arguments: dict[str, Any], message: str
) -> None:

    queue = queue_of(client, prefix)
    with pytest.raises(InvalidArgument, match=message):
        await queue.send_webhook("https://example.com/", {}, event_type="x", **arguments)
    assert await client.keys(prefix + "*") == []
