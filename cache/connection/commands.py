"""Encodes commands for a server, and refuses what cannot be sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import hiredis

from cache.errors import NotEncodable


def encode_command(args: Sequence[Any]) -> bytes:
    """
    One command in the server's protocol.

    Raises:
        NotEncodable: an argument is not text, bytes or a number, or its text is not valid
            Unicode (`json.loads` makes lone surrogates).
    """
    try:
        packed: bytes = hiredis.pack_command(tuple(args))
    except (UnicodeError, TypeError, ValueError, hiredis.HiredisError) as exc:
        # An argument may be a secret, so the error names only types and the reason.
        kinds = ", ".join(sorted({type(arg).__name__ for arg in args[1:]}))
        reason = exc.reason if isinstance(exc, UnicodeEncodeError) else type(exc).__name__
        raise NotEncodable(f"cannot send a command's argument ({reason}; {kinds})") from None
    return packed
