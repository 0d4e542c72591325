"""Tests that a provider's odd response costs no answer that was paid for, and no more than a try."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.support.llm import PROVIDERS
from tests.support.raw_provider import Handler, asked, group_of
from worker.errors import Transient
from worker.llm.providers import RemoteBatch, Unclear

pytestmark = pytest.mark.integration

BODY = json.dumps({"choices": [1], "content": []}).encode()
WHOLE = b"content-length: %d\r\n\r\n" % len(BODY) + BODY
KEPT = {
    "a long header": b"x: " + b"x" * 9000 + b"\r\n" + WHOLE,
    "not UTF-8": b"x: \xff\xfe\r\n" + WHOLE,
    "not ASCII": "x: Zoë\r\n".encode() + WHOLE,
    "a folded value": b"x: a\r\n b\r\n" + WHOLE,
    "bare line feeds": WHOLE.replace(b"\r\n", b"\n"),
    "an odd charset": b"content-type: a/b; charset=\r\n" + WHOLE,
    "an odd cookie": b"set-cookie: =;=,\r\n" + WHOLE,
    "no length": b"connection: close\r\n\r\n" + BODY,
    "white space around": b"connection: close\r\n\r\n\xef\xbb\xbf\n " + BODY + b"\n\0",
}
BROKEN = {
    "too long a header": b"x: " + b"x" * 90_000 + b"\r\n" + WHOLE,
    "500 headers": b"x: 1\r\n" * 500 + WHOLE,
    "no colon": b"not a header\r\n" + WHOLE,
    "NUL in a value": b"x: a\0b\r\n" + WHOLE,
    "two lengths": b"content-length: 3\r\n" + WHOLE,
    "a shorter body": b"content-length: 999\r\n\r\n" + BODY,
    "a bad chunk": b"transfer-encoding: chunked\r\n\r\nZZZ\r\n",
    "no gzip": b"content-encoding: gzip\r\n" + WHOLE,
}


def answering(data: bytes) -> Handler:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n" + data)
        writer.close()

    return handle


@pytest.mark.parametrize("rest", KEPT.values(), ids=KEPT)
async def test_an_answer_is_read_whatever_its_headers(rest: bytes) -> None:
    for name in PROVIDERS:
        async with asked(name, answering(rest)) as provider:
            assert (await provider.complete(group_of(name), b"{}")).body == json.loads(BODY)


@pytest.mark.parametrize("rest", BROKEN.values(), ids=BROKEN)
async def test_a_response_that_cannot_be_parsed_is_tried_again(rest: bytes) -> None:
    remote = RemoteBatch("b", "completed", ended=True, files=("f",))
    async with asked("openai", answering(rest)) as provider:
        answer = await provider.complete(group_of("openai"), b"{}")
        assert (answer.kind, answer.retryable) == ("no_answer", True)
        assert answer.message.startswith("200 with a response that broke off: ")
        with pytest.raises(Unclear):
            await provider.read("batch_1")
        with pytest.raises(Transient):
            _ = [item async for item in provider.results(remote)]
