"""Replies of every form, received in pieces of any size, reach the waiting calls whole and in order."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.exceptions import ReadOnlyError, ResponseError

from cache.connection import replies
from cache.connection.replies import Replies

pytestmark = pytest.mark.property

BUFFER = 256  # so that many replies are cut off, and some never fit
Reply = tuple[bool, bytes, Any]  # whether the call has a Decode, the bytes, what the call must get


class MultiplexedConnection:
    """Stands in for the connection: records why it was lost."""

    def __init__(self) -> None:
        self.lost: list[str] = []

    def progress(self) -> None:
        """No timer runs here."""

    def lose(self, reason: str, replies: Replies) -> None:
        self.lost.append(reason)
        replies.calls.clear()

    def desynchronize(self, reason: str, replies: Replies) -> None:
        assert reason
        self.lose("desynchronized", replies)


def decoded(data: bytes | memoryview, start: int, end: int) -> tuple[str, bytes]:
    return "decoded", bytes(data[start:end])


def bulk(data: bytes | None) -> bytes:
    return b"$-1\r\n" if data is None else b"$%d\r\n%s\r\n" % (len(data), data)


def array(*items: bytes) -> bytes:
    return b"*%d\r\n%s" % (len(items), b"".join(items))


@st.composite
def fetched(draw: st.DrawFn) -> Reply:
    """A reply for a call with a Decode: mostly the usual form of a hit."""
    sizes = st.sampled_from([0, 1, 15, 16, 16, 16, 17])
    short = st.none() | sizes.map(lambda size: b"\r\n$-1*3"[:size].ljust(size, b"\r"))
    usual = st.sampled_from([b"0123456789abcdef", b"*2\r\n$16\r\n\r\n\r\n\r\n"[:16]])
    first = draw(usual | short)
    long = st.integers(BUFFER // 2, 2 * BUFFER).map(lambda size: b"\r\n$16"[:5] * (size // 5))
    value = draw(st.none() | st.binary(max_size=20) | long)
    given_ = None if value is None else ("decoded", value)
    return True, array(bulk(first), bulk(value)), [first, given_]


REFUSED: st.SearchStrategy[Reply] = st.tuples(
    st.booleans(), st.just(b"-ERR no\r\n"), st.just("ERR no")
)
OTHERS: st.SearchStrategy[Reply] = st.sampled_from(
    [
        (False, b":7\r\n", 7),
        (False, b"+OK\r\n", b"OK"),
        (False, bulk(None), None),
        (False, bulk(b"x" * 2 * BUFFER), b"x" * 2 * BUFFER),
        (False, array(b":1\r\n", array(bulk(b"a"), bulk(b"b")), b":2\r\n"), [1, [b"a", b"b"], 2]),
        (False, array(*[b":1\r\n"] * 20), [1] * 20),
        # In the form of a hit, for a call without a Decode.
        (False, array(*[bulk(b"s" * 16)] * 2), [b"s" * 16] * 2),
    ]
)


def receive(incoming: Replies, data: bytes, sizes: Iterator[int]) -> None:
    """Deliver as a transport does, never more at a time than the buffer has room for."""
    at = 0
    while at < len(data):
        room = incoming.get_buffer(-1)
        assert room
        size = min(next(sizes), len(room), len(data) - at)
        room[:size] = data[at : at + size]
        at += size
        incoming.buffer_updated(size)


@pytest.fixture
def small_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replies, "_BUFFER_BYTES", BUFFER)


def begin(waiting: list[Reply]) -> tuple[Replies, MultiplexedConnection, list[asyncio.Future[Any]]]:
    connection, loop = MultiplexedConnection(), asyncio.new_event_loop()
    incoming = Replies(connection, asyncio.Protocol())
    calls = [loop.create_future() for _ in waiting]
    loop.close()
    for call, (has_decode, _, _) in zip(calls, waiting, strict=True):
        incoming.calls.append((call, decoded if has_decode else None))
    return incoming, connection, calls


@pytest.mark.usefixtures("small_buffer")
@settings(max_examples=400)
@given(
    st.lists(fetched() | fetched() | REFUSED | OTHERS, max_size=30),
    st.lists(st.integers(1, BUFFER), min_size=1, max_size=20) | st.just([1]),
)
def test_each_call_gets_its_reply(waiting: list[Reply], sizes: list[int]) -> None:
    incoming, connection, calls = begin(waiting)
    every = iter(sizes * (1 + sum(len(data) for _, data, _ in waiting)))
    receive(incoming, b"".join(data for _, data, _ in waiting), every)
    assert not connection.lost
    assert not incoming.calls
    for call, (_, _, expected) in zip(calls, waiting, strict=True):
        given_ = call.result()
        if isinstance(given_, ResponseError):
            assert str(given_) == expected
        else:
            assert (list(given_) if isinstance(given_, tuple) else given_) == expected


SMALL = [b":7\r\n", b"+OK\r\n", b"-ERR no\r\n", bulk(None), bulk(b"x" * 90), array(), b"*-1\r\n"]


@pytest.mark.usefixtures("small_buffer")
@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([*SMALL, array(b":1\r\n", array(*[bulk(b"a")] * 14)), b""])),
    st.lists(st.integers(1, BUFFER), min_size=1, max_size=20),
)
def test_hits_behind_another_reply_are_parsed_in_place(
    others: list[bytes], sizes: list[int]
) -> None:
    hit = array(bulk(b"0123456789abcdef"), bulk(b"value"))
    # An empty one stands for another hit.
    waiting = [(not data, data or hit, None) for data in [b"", *others, b""]]
    incoming, connection, calls = begin(waiting)
    places: list[type] = []
    for number, (call, (has_decode, _, _)) in enumerate(zip(calls, waiting, strict=True)):
        if has_decode:
            incoming.calls[number] = (call, lambda data, *_: places.append(type(data)))
    every = iter(sizes * sum(len(data) for _, data, _ in waiting))
    receive(incoming, b"".join(data for _, data, _ in waiting), every)
    assert not connection.lost
    assert not incoming.calls
    assert places == [memoryview] * (2 + others.count(b""))


@pytest.mark.usefixtures("small_buffer")
@pytest.mark.parametrize(
    "data", [b":1\r\n", b"*3\r\n" + b"$1\r\na\r\n" * 3, b"*2\r\n:1\r\n", b"*2\r\n$x\r\n", b"\r\n"]
)
def test_a_reply_of_another_form_ends_the_connection(data: bytes) -> None:
    incoming, connection, _ = begin([(True, b"", None)])
    receive(incoming, data, iter([100]))
    assert connection.lost == ["desynchronized"]


@pytest.mark.usefixtures("small_buffer")
def test_an_unexpected_reply_ends_the_connection() -> None:
    incoming, connection, _ = begin([])
    receive(incoming, b"+OK\r\n", iter([100]))
    assert connection.lost == ["desynchronized"]


@pytest.mark.usefixtures("small_buffer")
@pytest.mark.parametrize("stray", [b"$5\r\nhe", b"*2\r\n$16\r\n", b"+OK\r\n+O", b"+"])
@pytest.mark.parametrize("has_decode", [True, False])
def test_the_start_of_an_unexpected_reply_ends_the_connection(
    stray: bytes, has_decode: bool
) -> None:
    hit = array(bulk(b"0" * 16), bulk(b"value"))
    incoming, connection, _ = begin([(has_decode, hit, None)])
    receive(incoming, hit, iter([1] * 100))
    assert not connection.lost
    receive(incoming, stray, iter([100]))
    assert connection.lost == ["desynchronized"]


@pytest.mark.usefixtures("small_buffer")
@pytest.mark.parametrize("data", [b":1\r\n", b"*3\r\n:1\r\n:2\r\n:3\r\n", b"*2\r\n:1\r\n:1\r\n"])
def test_a_second_reply_of_another_form_ends_the_connection(data: bytes) -> None:
    incoming, connection, (first, second) = begin([(False, b"", None), (True, b"", None)])
    receive(incoming, b"+OK\r\n" + data, iter([100]))
    assert first.result() == b"OK"
    assert not second.done()
    assert connection.lost == ["desynchronized"]


@pytest.mark.usefixtures("small_buffer")
def test_a_decode_that_fails_ends_the_connection() -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError

    hit = array(bulk(b"0" * 16), bulk(b"value"))
    incoming, connection, (first, second) = begin([(True, hit, None), (True, hit, None)])
    incoming.calls[0] = (first, fails)
    receive(incoming, hit + hit, iter([200]))
    assert connection.lost == ["desynchronized"]
    assert not first.done()
    assert not second.done()


@pytest.mark.usefixtures("small_buffer")
def test_a_canceled_call_does_not_shift_the_others() -> None:
    hit = array(bulk(b"0" * 16), bulk(b"value"))
    incoming, _, (first, second) = begin([(True, hit, None), (True, hit, None)])
    first.set_result(None)  # done, as a canceled call is
    receive(incoming, hit + hit, iter([30] * 10))
    assert first.result() is None
    assert second.result()[1] == ("decoded", b"value")


@pytest.mark.usefixtures("small_buffer")
@pytest.mark.parametrize("has_decode", [True, False])
def test_a_server_that_became_a_replica_is_left_at_once(
    has_decode: bool,
) -> None:
    refused = b"-READONLY You can't write against a read only replica.\r\n"
    incoming, connection, (first, second) = begin([(has_decode, refused, None)] * 2)
    receive(incoming, refused + refused, iter([200]))
    assert isinstance(first.result(), ReadOnlyError)
    assert not second.done()
    assert connection.lost == ["the server became a replica"]
