"""
Reads JSON as providers write it: also what a strict decoder refuses. Pure.

An answer is paid for, so its form must not cost it: NaN and numbers beyond any range, control
characters and lone surrogates in text, text that is not UTF-8, a byte order mark.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec

from worker.llm.outline import SHORT_BYTES, is_dense

# White space, byte order marks and other characters without a meaning of their own.
_AROUND = " \t\r\n\v\f\0\x1a\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u200b\u2060\ufeff"
# Longer integers than Python reads by default are read as floats.
_MOST_DIGITS = 4000
# The strict decoder needs a few milliseconds for this much, unless it is dense.
_MOST_BYTES = 262_144


class UnreadableJSON(ValueError):
    """It is no JSON."""


class Slow(UnreadableJSON):
    """It is not decoded, because that would hold the event loop."""


def decode(data: bytes) -> Any:
    """
    Decode one JSON value.

    Raises:
        UnreadableJSON.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    text = text_of(data).strip(_AROUND)
    try:
        value, end = _decoder_of(data).raw_decode(text)
    except (ValueError, RecursionError):
        raise UnreadableJSON("not a JSON value") from None
    if end < len(text):
        raise UnreadableJSON("text follows the JSON value")
    return value


def decode_at_once(data: bytes) -> Any:
    """
    Decode one JSON value, if that holds the event loop for a few milliseconds only.

    Raises:
        Slow: it takes longer, or it is no JSON and that takes longer to find.
        UnreadableJSON.
    """
    if len(data) <= SHORT_BYTES:
        return decode(data)
    if len(data) > _MOST_BYTES or is_dense(data):
        raise Slow("too much to decode at once")
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Slow("too much for the lenient decoder") from None


def is_blank(text: bytes) -> bool:
    """Whether it holds nothing but what may stand around and between rows."""
    return not text_of(text).strip(_AROUND + ",[]")


def text_of(data: bytes) -> str:
    """Text of UTF-8 as encoders write it; surrogates are joined, other bytes become U+FFFD."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        pass
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


def _decoder_of(data: bytes) -> json.JSONDecoder:
    # A function that is called for each integer takes four times as long as the decoder's own.
    return _decoder_of_long if _LONG_NUMBER in data.translate(_DIGITS) else _decoder


_DIGITS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_NUMBER = b"0" * _MOST_DIGITS
_decoder = json.JSONDecoder(strict=False)
_decoder_of_long = json.JSONDecoder(strict=False, parse_int=_whole_number)
