"""Removes the secrets of a request from its response, because some servers echo requests."""

from __future__ import annotations

import json
from collections.abc import Iterable

_HIDDEN = b"***"
# Shorter secrets match ordinary text, and shorter beginnings of a cut-off one reveal little.
_LEAST_BYTES = 6


def spellings(secrets: Iterable[str]) -> tuple[bytes, ...]:
    """
    Return the forms in which header values may be echoed, longest first.

    The forms are UTF-8, Latin-1 and JSON with escapes. Of `Bearer abc`, `abc` is included too.
    """
    found: set[bytes] = set()
    for secret in secrets:
        for text in {secret, secret.rpartition(" ")[2]}:
            found |= {text.encode(), text.encode("latin-1", "replace")}
            found |= {json.dumps(text)[1:-1].encode()}
    return tuple(sorted((s for s in found if len(s) >= _LEAST_BYTES), key=len, reverse=True))


def scrub(data: bytes, hidden: tuple[bytes, ...], *, is_cut: bool = False) -> bytes:
    """Replace each of `hidden` by `***`; `is_cut`: the data may end in the middle of one."""
    for secret in hidden:
        data = data.replace(secret, _HIDDEN)
    for secret in hidden if is_cut else ():
        for length in range(min(len(secret), len(data)), _LEAST_BYTES - 1, -1):
            if data.endswith(secret[:length]):
                return data[:-length] + _HIDDEN
    return data
