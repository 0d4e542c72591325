"""Tests that data from outside is read and decompressed within limits."""

from __future__ import annotations

import asyncio
import gzip
import json
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cache.encoding import codec
from cache.encoding.envelope import Envelopes, Unreadable
from cache.encoding.header import Stamp
from cache.options import CacheOptions
from cache.records import Records
from tests.support.llm import PROVIDERS, submit
from tests.support.options import options_of
from tests.support.queues import queue_of, stores_of
from tests.support.raw_provider import asked, group_of, reply
from worker import RequestFailed
from worker.errors import Transient
from worker.llm.answers import Answer
from worker.llm.frames import frame
from worker.llm.providers import RemoteBatch, Unclear
from worker.llm.stored_answers import decode_answer, encode_answer, long_head

pytestmark = pytest.mark.integration

MB = 1_000_000
PEAK = 12 * MB  # memory that a test may use beyond its own data


@contextmanager
def bounded_memory(peak: int = PEAK) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < peak
    finally:
        tracemalloc.stop()


def answer_bytes(text: str) -> bytes:
    return json.dumps({"choices": [{"message": {"content": text}}]}).encode()


# -- direct calls ------------------------------------------------------------------


@pytest.mark.parametrize("name", PROVIDERS)
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_compression_bomb_is_inflated_up_to_the_limit_only(
    name: str, encoding: str
) -> None:
    pack = gzip.compress if encoding == "gzip" else zlib.compress
    bomb = pack(b'{"a": "' + b" " * (100 * MB) + b'"}')
    handler = reply(bomb, f"content-encoding: {encoding}")
    async with asked(name, handler) as provider:
        with bounded_memory():
            answer = await provider.complete(group_of(name), b"{}")
    assert answer.kind == "response_too_large"
    assert "LETTA_LLM_MAX_RESPONSE_BYTES" in answer.message


@pytest.mark.parametrize("name", PROVIDERS)
async def test_a_plain_reply_over_the_limit_is_left_unread(name: str) -> None:
    taken = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"10000\r\n" + b"x" * 65_536 + b"\r\n")
            await writer.drain()
            taken += 65_536

    async with asked(name, endless) as provider:
        with bounded_memory():
            answer = await provider.complete(group_of(name), b"{}")
    assert answer.kind == "response_too_large"
    assert taken < 10 * MB


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "identity"])
async def test_a_compressed_answer_within_the_limit_is_kept(encoding: str) -> None:
    body = answer_bytes("x" * 500_000)
    packed = {"gzip": gzip.compress(body), "deflate": zlib.compress(body), "identity": body}
    handler = reply(packed[encoding], f"content-encoding: {encoding}")
    async with asked("openai", handler) as provider:
        answer = await provider.complete(group_of("openai"), b"{}")
    assert answer.ok
    assert answer.text is not None
    assert b"".join(answer.text.pieces) == body


async def test_a_truncated_compressed_answer_is_no_answer() -> None:
    packed = gzip.compress(answer_bytes("hello"))
    for cut in (packed[:-9], b"no gzip at all"):
        async with asked("openai", reply(cut, "content-encoding: gzip")) as provider:
            answer = await provider.complete(group_of("openai"), b"{}")
            assert (answer.kind, answer.retryable) == ("no_answer", True)


@pytest.mark.parametrize("status", ["400 Bad Request", "503 Busy"])
async def test_only_the_message_of_a_refusal_is_read(status: str) -> None:
    message = json.dumps({"error": {"message": "no", "filler": "x" * (50 * MB)}}).encode()
    async with asked("openai", reply(message, status=status)) as provider:
        with bounded_memory():
            if status.startswith("503"):
                with pytest.raises(Transient):
                    await provider.complete(group_of("openai"), b"{}")
            else:
                answer = await provider.complete(group_of("openai"), b"{}")
                assert answer.kind == "http_400"


# -- batches -----------------------------------------------------------------------


async def test_a_too_large_batch_status_is_polled_again() -> None:
    handler = reply(gzip.compress(b" " * (50 * MB)), "content-encoding: gzip")
    async with asked("openai", handler) as provider:
        with bounded_memory(), pytest.raises(Unclear):
            await provider.read("batch_1")


async def test_results_are_inflated_piece_by_piece() -> None:
    row = {"custom_id": "c", "response": {"status_code": 200, "body": {"n": 1}}}
    lines = (
        (json.dumps(row).encode() + b"\n") * 3
        + (b" " * 999 + b"\n") * 30_000
        + json.dumps(row).encode()
    )
    handler = reply(gzip.compress(lines), "content-encoding: gzip")
    ticks = 0

    async def beside() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    async with asked("openai", handler) as provider:
        other = asyncio.create_task(beside())
        remote = RemoteBatch("b", "completed", ended=True, files=("f",))
        with bounded_memory():
            found = [item async for item in provider.results(remote)]
        other.cancel()
    assert [answer.body for _, answer in found] == [{"n": 1}] * 4
    assert ticks > 20


async def test_only_the_message_of_refused_results_is_read() -> None:
    handler = reply(b"x" * (50 * MB), status="500 Internal Server Error")
    async with asked("openai", handler) as provider:
        remote = RemoteBatch("b", "completed", ended=True, files=("f",))
        with bounded_memory(), pytest.raises(Transient):
            _ = [item async for item in provider.results(remote)]


async def test_one_long_line_of_results_is_read_in_linear_time() -> None:
    row = {"custom_id": "c", "response": {"status_code": 200, "body": "x" * (40 * MB)}}
    async with asked("openai", reply(json.dumps(row).encode() + b"\n")) as provider:
        remote = RemoteBatch("b", "completed", ended=True, files=("f",))
        async with asyncio.timeout(30):  # in quadratic time: over a minute
            (found,) = [item async for item in provider.results(remote)]
    assert found[1].text is not None
    stored = long_head(found[1]) + b"".join(frame(piece) for piece in found[1].text.pieces)
    assert len(decode_answer(stored).body) == 40 * MB


# -- what is stored ----------------------------------------------------------------


def bombs() -> list[bytes]:
    whole = codec.encode([" " * (100 * MB), "", ""])
    packed = zlib.compress(whole)
    head = long_head(Answer(path=("a",)))
    return [
        b"z" + packed,
        b"sz" + zlib.compress(whole, 9),
        head + b"\x01" + len(packed).to_bytes(4, "big") + packed,
    ]


async def test_a_stored_bomb_is_an_unreadable_answer(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix, options_of(llm_batch_max_age_s=3600))
    (id_,) = await submit(queue, "openai", "a")
    for bomb in bombs():
        await client.set(stores_of(queue).keys.llm_result(id_), bomb)
        with bounded_memory(), pytest.raises(RequestFailed, match="unreadable"):
            await queue.llm_result(id_, timeout_s=10)


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"s",
        b"z",
        b"zz",
        b"\x93",
        b"\x90",
        b"\xc0",
        b"\x93\x01\x02",
        b"z" + b"\xff" * 99,
        b"of",
        b"sf\0\0\0\1\x90",
    ],
)
def test_a_stored_answer_of_another_form_is_unreadable(stored: bytes) -> None:
    assert decode_answer(stored).kind == "unreadable"


@pytest.mark.parametrize("size", [10, 8192, 100_000, 3 * MB])
@pytest.mark.parametrize("text", ["same", "\x00", "ab\n" * 7])
def test_an_answer_that_compresses_well_is_read_back(size: int, text: str) -> None:
    answer = Answer(body=text * (size // len(text)))
    assert decode_answer(encode_answer(answer)) == answer


@pytest.mark.parametrize("size", [10, 70_000, 900_000])
def test_a_cached_value_that_compresses_well_is_read_back(size: int) -> None:
    envelopes = Envelopes(compress_min_bytes=1, max_value_bytes=MB)
    stamp = Stamp(b"f" * 8, b"m" * 8, 1, 2)
    for value in ("x" * size, b"\x00" * size, ["same"] * (size // 8)):
        sealed = envelopes.seal(value, stamp, "k")
        assert envelopes.open(envelopes.read(sealed), "k") == value
    records = Records(CacheOptions(compress_min_bytes=1))
    message = {"id": "m", "text": "x" * size}
    assert records.open_all([records.seal(message, b"k")], b"k") == [message]


def test_a_zstd_bomb_in_the_cache_is_a_miss() -> None:
    import zstandard

    frame = zstandard.ZstdCompressor(level=19).compress(codec.encode("x" * (40 * MB)))
    envelopes = Envelopes(compress_min_bytes=1, max_value_bytes=MB)
    stamp = Stamp(b"f" * 8, b"m" * 8, 1, 2)
    stored = envelopes.read(envelopes.seal("x" * 100, stamp, "k"))
    assert stored.head is not None
    stored.payload = frame
    stored.head = stored.head._replace(length=len(frame), crc=zlib.crc32(frame + frame))
    records = Records(CacheOptions(compress_min_bytes=1))
    with bounded_memory():
        with pytest.raises(Unreadable):
            envelopes.open(stored, "k")
        with pytest.raises(Unreadable):
            records.open_all([b"\xc1\x01" + frame] * 3, b"k")
