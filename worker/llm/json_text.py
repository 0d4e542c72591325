"""
Reads JSON as providers write it: also what a strict decoder refuses. Pure.

An answer is paid for, so its form must not cost it: NaN and numbers beyond any range, control
characters and lone surrogates in text, text that is not UTF-8, a byte order mark, several
objects on a line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec

# White space, byte order marks and other characters without a meaning of their own.
_AROUND = " \t\r\n\v\f\0\x1a\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u200b\u2060\ufeff"
# Rows may be written as an array.
_BETWEEN = re.compile("[" + re.escape(_AROUND + ",[]") + "]*")
# Longer integers than Python reads by default are read as floats.
_MOST_DIGITS = 4000


class Unreadable(ValueError):
    """It is no JSON."""


def decode(data: bytes) -> Any:
    """
    Decode one JSON value.

    Raises:
        Unreadable.
    """
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        pass
    text = text_of(data).strip(_AROUND)
    try:
        value, end = _decoder.raw_decode(text)
    except (ValueError, RecursionError):
        raise Unreadable("not a JSON value") from None
    if end < len(text):
        raise Unreadable("text follows the JSON value")
    return value


def objects(line: bytes) -> tuple[list[Mapping[str, Any]], str]:
    """The JSON objects on a line, and the text after them that is none."""
    try:
        found: list[Any] = [msgspec.json.decode(line)]
        left = ""
    except (msgspec.MsgspecError, ValueError, RecursionError):
        found, left = _values(text_of(line))
    rows = [row for value in found for row in (value if isinstance(value, list) else [value])]
    return [row for row in rows if isinstance(row, Mapping)], left


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


def _values(text: str) -> tuple[list[Any], str]:
    found: list[Any] = []
    at = 0
    while True:
        between = _BETWEEN.match(text, at)
        at = at if between is None else between.end()
        if at == len(text):
            return found, ""
        try:
            value, at = _decoder.raw_decode(text, at)
            found.append(value)
        except (ValueError, RecursionError):
            # Something else may stand before the first object, such as `data: `.
            begin = text.find("{", at)
            if begin <= at:
                return found, text[at:]
            at = begin


def _whole_number(digits: str) -> int | float:
    return int(digits) if len(digits) <= _MOST_DIGITS else float(digits)


_decoder = json.JSONDecoder(strict=False, parse_int=_whole_number)
