"""Takes out of what a server answered the secrets that it was sent: some echo their requests."""

from __future__ import annotations

import json
from collections.abc import Iterable

_HIDDEN = b"***"
# Shorter ones are words of any text. Nor would less of one that was cut off tell much.
_LEAST_BYTES = 6


def spellings(secrets: Iterable[str]) -> tuple[bytes, ...]:
    """
    How header values may come back: longest first, in UTF-8, Latin-1 and JSON's escapes.

    Of `Bearer abc` the key counts by itself, too.
    """
    found: set[bytes] = set()
    for secret in secrets:
        for text in {secret, secret.rpartition(" ")[2]}:
            found |= {text.encode(), text.encode("latin-1", "replace")}
            found |= {json.dumps(text)[1:-1].encode()}
    return tuple(sorted((s for s in found if len(s) >= _LEAST_BYTES), key=len, reverse=True))


def scrub(data: bytes, hidden: tuple[bytes, ...], *, is_cut: bool = False) -> bytes:
    """The data without what is hidden; `is_cut`: it may end in the middle of one."""
    for secret in hidden:
        data = data.replace(secret, _HIDDEN)
    for secret in hidden if is_cut else ():
        for length in range(min(len(secret), len(data)), _LEAST_BYTES - 1, -1):
            if data.endswith(secret[:length]):
                return data[:-length] + _HIDDEN
    return data
