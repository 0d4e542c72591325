"""
Encodes values as msgpack and decodes them. Never pickle.

A value comes back equal and with its type, or it is refused. Two kinds change:
a tuple comes back as a list (except in a set or as a key), a bytearray or
memoryview as bytes. extensions.py has the types that msgpack lacks.

msgpack encodes, because its packer can insist on exact types: msgspec writes a
UUID, a date or a dataclass as text or a map without asking. msgspec decodes,
because it is faster. Decoding never imports or runs anything that the writer
named: an exception is read as `RemoteError` or `asyncio.CancelledError`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import msgspec
from msgpack import Packer

from cache.encoding.extensions import RemoteError, exception, extension, read_extension
from cache.encoding.refusals import refusal
from cache.errors import CodecError, NotEncodable

__all__ = [
    "RemoteError",
    "array",
    "decode",
    "encode",
    "encode_exact",
    "encode_or_none",
    "encode_row",
    "lua_text",
]

# Each set inside a set has a packer of its own, and nests Python calls when it is read.
_MOST_NESTED_SETS = 16
# A job's size; it grows. The default would allocate 256 KiB at every call.
_BUFFER_BYTES = 256
_row_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ext_hook=read_extension)


def encode(value: Any) -> bytes:
    """
    Encode a value. An exception is read as a `RemoteError`, everything else as it was given.

    Raises:
        NotEncodable: a part would not come back as given. The message says which, and what to
            pass instead.
    """
    try:
        return _pack(value, _stand_in)
    except Exception as exc:  # noqa: BLE001  (a foreign object may raise anything)
        raise refusal(value, exc, partial(_pack, default=_stand_in)) from None


def encode_or_none(value: Any) -> bytes | None:
    """As `encode`, but None for a value without an encoding: to say which part takes far longer."""
    try:
        return _pack(value, _stand_in)
    except Exception:  # noqa: BLE001  (a foreign object may raise anything)
        return None


def encode_exact(value: Any) -> bytes:
    """As `encode`, but refuse exceptions too: for what a caller gives us to keep."""
    try:
        return _pack(value, _exact)
    except Exception as exc:  # noqa: BLE001  (a foreign object may raise anything)
        raise refusal(value, exc, partial(_pack, default=_exact)) from None


def encode_row(row: Sequence[Any]) -> bytes:
    """
    Encode what a script gets: our own values, also those of `lua_text`.

    Raises:
        NotEncodable: a value is not msgpack's.
    """
    try:
        return _row_encoder.encode(row)
    except (TypeError, ValueError, OverflowError) as exc:
        raise NotEncodable(f"a script's argument has no encoding: {type(exc).__name__}") from None


def decode(data: bytes | memoryview) -> Any:
    """
    Decode one value.

    Raises:
        CodecError: the data is not msgpack, is cut short, or goes on after the value. A pickle is
            refused too.
    """
    try:
        return _decoder.decode(data)
    except CodecError:
        raise
    except (msgspec.MsgspecError, TypeError, ValueError, RecursionError) as exc:
        raise CodecError(f"not a msgpack value: {exc}") from None


def array(items: Sequence[bytes]) -> bytes:
    """A msgpack array of items that are already encoded."""
    return b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items)


# What precedes the bytes in `lua_text`.
LUA_TEXT_HEAD = 5


def lua_text(data: bytes) -> msgspec.Raw:
    """Bytes as a msgpack str: cmsgpack in the server's Lua cannot read a bin."""
    return msgspec.Raw(b"\xdb" + len(data).to_bytes(4, "big") + data)


def _pack(value: Any, default: Callable[[Any], Any]) -> bytes:
    # A packer per call: one that is in use would be corrupted by another thread.
    data: bytes = Packer(default=default, strict_types=True, buf_size=_BUFFER_BYTES).pack(value)
    return data


def _stand_in(part: Any, exceptions: bool = True, sets: int = 0) -> Any:
    """What to encode for a part that is not exactly of a type of msgpack."""
    if type(part) is tuple:
        return list(part)
    if exceptions and isinstance(part, BaseException):
        return exception(part)
    found = None
    if sets < _MOST_NESTED_SETS:
        inside = partial(_stand_in, exceptions=exceptions, sets=sets + 1)
        found = extension(part, lambda items: _pack(items, inside))
    if found is None:
        raise TypeError(type(part).__name__)
    return found


_exact = partial(_stand_in, exceptions=False)
