"""Values survive encoding; foreign bytes are an error and never run code."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from cache.encoding.codec import RemoteError, decode, encode, encode_exact
from cache.errors import CodecError, NotEncodable
from tests.support.values import REFUSED, Text, shape, values

pytestmark = pytest.mark.property


@given(values)
@settings(max_examples=50)
def test_a_value_comes_back_equal_with_its_types(value: Any) -> None:
    for encoder in (encode, encode_exact):
        found = decode(encoder(value))
        assert found == value
        assert shape(found) == shape(value)
        assert decode(encoder(found)) == value


@given(values)
@settings(max_examples=50)
def test_a_pickle_is_an_error(value: Any) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        try:
            decode(pickle.dumps({"f": value}, protocol))
        except CodecError:
            continue
        pytest.fail("a pickle was read")


@given(st.binary())
def test_any_bytes_decode_or_are_a_codec_error(data: bytes) -> None:
    with contextlib.suppress(CodecError):
        decode(data)


def test_an_exception_comes_back_as_its_name_and_message_only() -> None:
    class Weird(Exception):
        def __str__(self) -> str:
            return "boom"

    found = decode(encode(Weird()))
    assert type(found) is RemoteError
    assert (found.kind, found.message) == ("Weird", "boom")
    assert type(decode(encode(found))) is RemoteError
    assert decode(encode(found)).kind == "Weird"


def test_a_cancellation_is_decoded_as_one() -> None:
    assert isinstance(decode(encode(asyncio.CancelledError())), asyncio.CancelledError)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_change_is_refused_with_a_remedy(name: str) -> None:
    value, remedy = REFUSED[name]
    for encoder in (encode, encode_exact):
        for wrapped, path in ((value, ""), ({"a": [0, value]}, r"\['a'\]\[1\]")):
            with pytest.raises(NotEncodable, match=f"{path}.*{remedy}"):
                encoder(wrapped)


def test_an_exception_is_refused_where_it_would_change() -> None:
    with pytest.raises(NotEncodable, match=r"ValueError.*str"):
        encode_exact([ValueError("a")])


def test_a_refusal_names_no_content() -> None:
    secret = "sk-1234567890"
    with pytest.raises(NotEncodable) as caught:
        encode({secret: [{Text(secret)}]})
    assert secret not in str(caught.value)


def test_a_tuple_comes_back_as_a_list() -> None:
    assert decode(encode((1, (2, {"a": (3,)})))) == [1, [2, {"a": [3]}]]


def test_a_datetime_of_a_model_keeps_its_offset() -> None:
    given_ = TypeAdapter(datetime).validate_python("2024-01-01T00:00:00+02:00")
    found = decode(encode(given_))
    assert found == given_
    assert found.utcoffset() == timedelta(hours=2)


def test_a_zone_that_is_not_installed_is_named() -> None:
    data = encode(datetime(2024, 1, 1, tzinfo=ZoneInfo("Europe/Berlin")))
    with pytest.raises(CodecError, match=r"Europe/Nobody.*tzdata"):
        decode(data.replace(b"Europe/Berlin", b"Europe/Nobody"))


@given(st.integers(0, 127), st.binary())
def test_any_extension_decodes_or_is_a_codec_error(code: int, data: bytes) -> None:
    with contextlib.suppress(CodecError):
        decode(b"\xc8" + len(data).to_bytes(2, "big") + bytes([code]) + data)


def test_what_is_nested_too_deep_is_refused() -> None:
    deep: Any = []
    for _ in range(2000):
        deep = [deep]
    circle: list[Any] = []
    circle.append(circle)
    sets = frozenset[Any]()
    for _ in range(40):
        sets = frozenset({sets})
    for value in (deep, circle, sets, {"a": deep}):
        with pytest.raises(NotEncodable, match="too deep"):
            encode(value)
