"""
Encodes values as msgpack and decodes them. Never pickle.

Exceptions are an extension type (code 1: class name and message; code 2: a
cancellation). They are read as `RemoteError` or `asyncio.CancelledError`:
decoding never imports or runs anything that the writer named.
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
    """An exception that another process raised: its class name and message, not its class."""

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
    raise NotEncodable(f"a value of type {type(value).__name__} has no safe encoding")


def _ext_hook(code: int, data: memoryview) -> Any:
    if code == _CANCELLED:
        return asyncio.CancelledError()
    if code == _EXCEPTION:
        kind, message = msgspec.msgpack.decode(data, type=tuple[str, str])
        return RemoteError(kind, message)
    raise CodecError(f"unknown msgpack extension {code}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_encode_hook)
_decoder = msgspec.msgpack.Decoder(ext_hook=_ext_hook)


def encode(value: Any) -> bytes:
    """
    Encode a value. Bytes and aware datetimes keep their type; tuples and sets become lists.

    Raises:
        NotEncodable: the value holds something that has no safe encoding; the message names its
            type.
    """
    try:
        return _encoder.encode(value)
    except NotEncodable:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise NotEncodable(str(exc) or type(exc).__name__) from None


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
    except (msgspec.MsgspecError, ValueError, RecursionError) as exc:
        raise CodecError(f"not a msgpack value: {exc}") from None


def array(items: Sequence[bytes]) -> bytes:
    """A msgpack array of items that are already encoded."""
    return b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items)


def lua_text(data: bytes) -> msgspec.Raw:
    """Bytes as a msgpack str: cmsgpack in the server's Lua cannot read a bin."""
    return msgspec.Raw(b"\xdb" + len(data).to_bytes(4, "big") + data)
