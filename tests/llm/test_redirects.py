"""Tests that results are followed to a storage, and our key is not."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest

from worker.errors import Transient
from worker.llm.providers import AnthropicProvider, OpenAIProvider, RemoteBatch
from worker.llm.providers.protocol import Absent

pytestmark = pytest.mark.unit

REMOTE = RemoteBatch("b", "completed", ended=True, files=("f",))
LINE = json.dumps({"custom_id": "c", "response": {"status_code": 200, "body": {"n": 1}}}).encode()
Answer = Callable[[httpx.Request], httpx.Response]


async def read(answer: Answer, kind: str = "openai") -> tuple[int, list[httpx.Request]]:
    """Read a batch's results; returns how many there are, and the requests that were made."""
    asked: list[httpx.Request] = []

    def note(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return answer(request)

    client = httpx.AsyncClient(transport=httpx.MockTransport(note))
    cls = OpenAIProvider if kind == "openai" else AnthropicProvider
    provider = cls(client, base_url="https://api.test/v1", api_key="secret-key", timeout_s=5)
    return len([found async for found in provider.results(REMOTE)]), asked


def streamed(status: int, body: bytes = b"", **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers, stream=httpx.ByteStream(body))


def secrets(request: httpx.Request) -> list[str]:
    return [v for k, v in request.headers.items() if k in {"authorization", "x-api-key"}]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_the_key_stays_with_the_provider(kind: str, status: int) -> None:
    target = "https://storage.test/x?sig=a%2Fb%2B&n=1"

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "api.test":
            return streamed(status, location=target)
        return streamed(200, LINE)

    count, (first, second) = await read(answer, kind)
    assert count == 1
    assert secrets(first)
    assert not secrets(second)
    assert str(second.url) == target


async def test_a_redirect_on_the_provider_keeps_the_key() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/"):
            return streamed(200, LINE)
        return streamed(307, location=f"{request.url.path}/")

    count, asked = await read(answer)
    assert count == 1
    assert all(secrets(request) for request in asked)


@pytest.mark.parametrize(
    "location",
    ["http://storage.test/x", "https://api.test:99999/", "https://[", "https://api.test/v1/loop"],
)
async def test_a_redirect_that_leads_nowhere_is_tried_again_later(location: str) -> None:
    asked = 0

    def answer(_request: httpx.Request) -> httpx.Response:
        nonlocal asked
        asked += 1
        return streamed(302, location=location)

    with pytest.raises(Transient, match="redirect"):
        await read(answer)
    assert asked <= 5


@pytest.mark.parametrize(("status", "error"), [(403, Transient), (500, Transient), (404, Absent)])
async def test_a_refusal_of_the_storage_is_not_about_the_key(
    status: int, error: type[Exception]
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.host == "api.test":
            return streamed(302, location="https://storage.test/x")
        return streamed(status, b"<Error/>")

    with pytest.raises(error):
        await read(answer)


async def test_results_that_are_being_prepared_are_tried_again_later() -> None:
    with pytest.raises(Transient, match="202"):
        await read(lambda _request: streamed(202, b"{}"))
