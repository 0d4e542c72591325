"""
Encodes the value types of the standard library that msgpack lacks, as msgpack extensions.

    1  exception: [class name, message]      2  cancellation: empty
    3  datetime:  [naive ISO text, fold, zone]
    4  date:      ISO text                   5  time: [naive ISO text, fold, zone]
    6  timedelta: [days, seconds, microseconds]
    7  UUID:      16 bytes                   8  Decimal: text
    9  set, 10 frozenset: {item: nil}. A decoder reads arrays in keys as tuples, so
       tuples in a set stay tuples.

A zone is nil, a name of the time zone database, or an offset from UTC in
microseconds. A datetime in UTC is msgpack's own timestamp (extension -1).

Only exact types are encoded: a subclass may hold or mean more, and would arrive
as its base. Decoding looks a zone up by name; it imports and runs nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
from msgpack import ExtType, Timestamp

from cache.encoding.models import is_zone
from cache.errors import CodecError

_EXCEPTION, _CANCELLED, _DATETIME, _DATE, _TIME = 1, 2, 3, 4, 5
_TIMEDELTA, _UUID, _DECIMAL, _SET, _FROZENSET = 6, 7, 8, 9, 10
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST_ZONE = 64
_pack = msgspec.msgpack.encode

Encode = Callable[[Any], bytes]
_Zone = str | int | None


class RemoteError(Exception):
    """An exception that another process raised: its class name and message, not its class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}" if message else kind)
        self.kind = kind
        self.message = message


class ForeignZone(TypeError):
    """A time zone of a class that has no name or fixed offset to write down."""


def extension(value: Any, encode: Encode) -> Any:
    """
    A value's extension, or None if its type has none. `encode` encodes the items of a set.

    Raises:
        ForeignZone: the value's time zone cannot be written down.
    """
    build = _BUILD.get(type(value))
    return None if build is None else build(value, encode)


def exception(value: BaseException) -> ExtType:
    if isinstance(value, asyncio.CancelledError):
        return ExtType(_CANCELLED, b"")
    if isinstance(value, RemoteError):
        return ExtType(_EXCEPTION, _pack([value.kind, value.message]))
    return ExtType(_EXCEPTION, _pack([type(value).__name__, str(value)]))


def _datetime(value: datetime, _: Encode) -> ExtType | Timestamp:
    if value.tzinfo is UTC and not value.fold:  # a timestamp has no fold
        return Timestamp.from_unix_nano((value - _EPOCH) // _MICROSECOND * 1000)
    return ExtType(_DATETIME, _moment(value))


def _moment(value: datetime | time) -> bytes:
    naive = value.replace(tzinfo=None, fold=0).isoformat()
    return _pack([naive, value.fold, _zone(value.tzinfo)])


def _zone(zone: tzinfo | None) -> _Zone:
    if zone is None:
        return None
    if type(zone) is ZoneInfo and zone.key is not None:
        return zone.key
    if isinstance(zone, timezone) or is_zone(zone):
        offset = zone.utcoffset(None)
        assert offset is not None  # noqa: S101  (a fixed offset needs no datetime)
        return offset // _MICROSECOND
    raise ForeignZone(type(zone).__name__)


_BUILD: dict[type, Callable[[Any, Encode], Any]] = {
    datetime: _datetime,
    date: lambda value, _: ExtType(_DATE, value.isoformat().encode()),
    time: lambda value, _: ExtType(_TIME, _moment(value)),
    timedelta: lambda value, _: ExtType(
        _TIMEDELTA, _pack([value.days, value.seconds, value.microseconds])
    ),
    UUID: lambda value, _: ExtType(_UUID, value.bytes),
    Decimal: lambda value, _: ExtType(_DECIMAL, str(value).encode()),
    set: lambda value, encode: ExtType(_SET, encode(dict.fromkeys(value))),
    frozenset: lambda value, encode: ExtType(_FROZENSET, encode(dict.fromkeys(value))),
}


# -- reading -------------------------------------------------------------------------


def read_extension(code: int, data: memoryview) -> Any:
    """
    The value of an extension; the `ext_hook` of a msgspec decoder.

    Raises:
        CodecError: the code is unknown, the data is not what was written, or the time zone is not
            in this machine's database.
    """
    read = _READ.get(code)
    if read is None:
        raise CodecError(f"unknown msgpack extension {code}")
    try:
        return read(bytes(data))
    except CodecError:
        raise
    except Exception as exc:  # noqa: BLE001  (each type's parser raises its own)
        raise CodecError(f"msgpack extension {code} is malformed: {type(exc).__name__}") from None


def _read_error(data: bytes) -> RemoteError:
    kind, message = msgspec.msgpack.decode(data, type=tuple[str, str])
    return RemoteError(kind, message)


def _read_datetime(data: bytes) -> datetime:
    naive, fold, zone = msgspec.msgpack.decode(data, type=tuple[str, int, _Zone])
    return datetime.fromisoformat(naive).replace(tzinfo=_read_zone(zone), fold=fold)


def _read_time(data: bytes) -> time:
    naive, fold, zone = msgspec.msgpack.decode(data, type=tuple[str, int, _Zone])
    return time.fromisoformat(naive).replace(tzinfo=_read_zone(zone), fold=fold)


def _read_zone(zone: _Zone) -> tzinfo | None:
    if isinstance(zone, str):
        try:
            return ZoneInfo(zone[:_LONGEST_ZONE])
        except (LookupError, OSError, ValueError):
            raise CodecError(
                f"the time zone {zone[:_LONGEST_ZONE]!r} is not on this machine; install tzdata"
            ) from None
    return None if zone is None else timezone(timedelta(microseconds=zone))


def _read_timedelta(data: bytes) -> timedelta:
    days, seconds, microseconds = msgspec.msgpack.decode(data, type=tuple[int, int, int])
    return timedelta(days, seconds, microseconds)


def _read_items(data: bytes) -> dict[Any, None]:
    items: dict[Any, None] = _decode_items(data)
    return items


_READ: dict[int, Callable[[bytes], Any]] = {
    _EXCEPTION: _read_error,
    _CANCELLED: lambda _: asyncio.CancelledError(),
    _DATETIME: _read_datetime,
    _DATE: lambda data: date.fromisoformat(data.decode()),
    _TIME: _read_time,
    _TIMEDELTA: _read_timedelta,
    _UUID: lambda data: UUID(bytes=data),
    _DECIMAL: lambda data: Decimal(data.decode()),
    _SET: lambda data: set(_read_items(data)),
    _FROZENSET: lambda data: frozenset(_read_items(data)),
}
_decode_items = msgspec.msgpack.Decoder(dict[Any, None], ext_hook=read_extension).decode
