"""
Reads numbers from outside: whole and within bounds, or a fallback.

Callers, providers, receivers and anyone who can write to the server may send
numbers of any size, or text instead of a number. Redis counts in 64 bits and
its Lua in doubles, so numbers stay within 2**53, where both are exact.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

# Up to this number a double holds every whole number exactly.
EXACT = 2**53
# The last millisecond that a datetime can name.
MOST_MS = 253_402_300_799_999


def whole(value: Any, *, most: int = EXACT, fallback: int = 0) -> int:
    """
    Return a whole number from 0 to `most`, or `fallback`.

    Accepts an int, a float without a fraction, and decimal digits as text or bytes.
    """
    found = None if value is None else _whole(value)
    return fallback if found is None or not 0 <= found <= most else found


def moment(ms: Any) -> datetime:
    """A time from outside, in Unix ms; the beginning of 1970 for what is no time."""
    return datetime.fromtimestamp(whole(ms, most=MOST_MS) / 1000, UTC)


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else None
    if isinstance(value, str | bytes) and 0 < len(value) <= 19:
        # Digits in text may be of any script, in bytes only ASCII.
        text = value if isinstance(value, bytes) else value.encode("utf-8", "replace")
        return int(text) if text.isdigit() else None
    return None
