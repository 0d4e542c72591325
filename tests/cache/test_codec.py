"""Values survive encoding; foreign bytes are an error and never run code."""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from cache.encoding.codec import RemoteError, decode, encode
from cache.errors import CodecError, NotEncodable

pytestmark = pytest.mark.property

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=st.just(UTC), min_value=datetime(1970, 1, 1))  # noqa: DTZ001
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@given(values)
def test_a_value_survives(value: Any) -> None:
    assert decode(encode(value)) == value


@given(values)
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


def test_a_model_is_encoded_as_its_fields() -> None:
    class Point(BaseModel):
        x: int

    assert decode(encode([Point(x=1)])) == [{"x": 1}]


def test_what_has_no_safe_encoding_is_named() -> None:
    with pytest.raises(NotEncodable, match="object"):
        encode({"a": object()})
    with pytest.raises(NotEncodable):
        encode(2**70)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotEncodable):
        encode(deep)
