"""
Bytes in Redis: msgpack for jobs and their results. Never pickle.

Exceptions travel as an extension (code 1: class name and message; code 2: a
cancellation) and come back as `RemoteError` or `asyncio.CancelledError`: what
is read never imports or runs anything that the writer named.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from pydantic import BaseModel

from cache.errors import CodecError, NotEncodable

_EXCEPTION, _CANCELLED = 1, 2


class RemoteError(Exception):
    """An exception of another process: its class name and message, not its class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind
        self.message = message


def _encode_hook(value: Any) -> Any:
    if isinstance(value, asyncio.CancelledError):
        return msgspec.msgpack.Ext(_CANCELLED, b"")
    if isinstance(value, RemoteError):
        return msgspec.msgpack.Ext(_EXCEPTION, msgspec.msgpack.encode([value.kind, value.message]))
    if isinstance(value, BaseException):
        pair = [type(value).__name__, str(value)]
        return msgspec.msgpack.Ext(_EXCEPTION, msgspec.msgpack.encode(pair))
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return dict(value)
    raise NotEncodable(f"values of type {type(value).__name__} have no safe encoding")


def _ext_hook(code: int, data: memoryview) -> Any:
    if code == _CANCELLED:
        return asyncio.CancelledError()
    if code == _EXCEPTION:
        kind, message = msgspec.msgpack.decode(data, type=tuple[str, str])
        return RemoteError(kind, message)
    raise CodecError(f"unknown extension {code}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_hook)
_decoder = msgspec.msgpack.Decoder(ext_hook=_ext_hook)


def encode(value: Any) -> bytes:
    """
    Value -> msgpack. Bytes and aware datetimes are kept; tuples and sets become lists.

    Raises:
        NotEncodable: something inside has no safe encoding; the message names its type.
    """
    try:
        return _encoder.encode(value)
    except NotEncodable:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise NotEncodable(str(exc) or type(exc).__name__) from None


def decode(data: bytes | memoryview) -> Any:
    """
    Msgpack -> value.

    Raises:
        CodecError: not msgpack, cut short, or with bytes behind its end (a pickle is all three).
    """
    try:
        return _decoder.decode(data)
    except CodecError:
        raise
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise CodecError(f"not a msgpack value: {exc}") from None


def array(items: Sequence[bytes]) -> bytes:
    """The msgpack array of items that are encoded already."""
    return b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items)


def lua_text(data: bytes) -> msgspec.Raw:
    """Bytes inside a value for a script: as msgpack's str, because the server's Lua knows no bin."""
    return msgspec.Raw(b"\xdb" + len(data).to_bytes(4, "big") + data)
