"""
Reads numbers that came from outside: whole and within bounds, or a fallback.

Callers, providers, receivers and whoever can write to the server send numbers
of any size, and text where a number belongs. Redis counts in 64 bits, its Lua
in doubles: what goes there stays below 2**53, where both are exact.
"""

from __future__ import annotations

import math
from typing import Any

# The largest whole number that a double holds exactly together with all below it.
EXACT = 2**53


def whole(value: Any, *, most: int = EXACT, fallback: int = 0) -> int:
    """
    A whole number from 0 to `most`, or `fallback`.

    Takes an int, a float without a fraction, and decimal digits as text or bytes.
    """
    found = _whole(value)
    return fallback if found is None or not 0 <= found <= most else found


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value.is_integer() else None
    if isinstance(value, str | bytes) and 0 < len(value) <= 19:
        # Text of `str.isdecimal` may hold digits of any script, bytes only ASCII ones.
        text = value if isinstance(value, bytes) else value.encode("utf-8", "replace")
        return int(text) if text.isdigit() else None
    return None
