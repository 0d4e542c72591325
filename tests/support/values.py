"""Values that jobs and the cache must carry unchanged, and values that they must refuse."""

from __future__ import annotations

import collections
import dataclasses
import enum
import types
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import strategies as st
from pydantic import BaseModel

_NAIVE = datetime(2024, 1, 2, 3)  # noqa: DTZ001

CARRIED: list[Any] = [
    UUID(int=5),
    Decimal("1.10"),
    date(2024, 1, 2),
    time(1, 2, 3, 4),
    timedelta(seconds=90),
    _NAIVE,
    _NAIVE.replace(tzinfo=UTC),
    _NAIVE.replace(tzinfo=UTC, fold=1),
    time(1, tzinfo=UTC, fold=1),
    _NAIVE.replace(tzinfo=timezone(timedelta(hours=5, minutes=30))),
    datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
    {1, (2, (3,)), UUID(int=1)},
    frozenset({frozenset({1}), "a"}),
    {1: b"\xff", (1, UUID(int=2)): {date(2024, 1, 1): None}},
    float("inf"),
    2**64 - 1,
]


def _offset(minutes: int) -> timezone:
    return timezone(timedelta(minutes=minutes))


_ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe")
zones = st.none() | st.sampled_from(_ZONES).map(ZoneInfo) | st.integers(-1439, 1439).map(_offset)
hashable = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.datetimes(timezones=zones, allow_imaginary=False)
    | st.dates()
    | st.times(timezones=zones)
    | st.timedeltas()
    | st.uuids()
    | st.decimals(allow_nan=False)
)
keys = hashable | st.tuples(hashable, hashable) | st.frozensets(hashable, max_size=3)
values = st.recursive(
    hashable | st.sets(keys, max_size=3) | st.frozensets(keys, max_size=3),
    lambda inner: st.lists(inner) | st.dictionaries(keys, inner),
    max_leaves=10,
)


def shape(value: Any) -> Any:
    """A value with the types of its parts: 1, 1.0 and True are equal, but their shapes are not."""
    if isinstance(value, dict):
        return dict, {shape(key): shape(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value), tuple(shape(item) for item in value)
    if isinstance(value, set | frozenset):
        return type(value), frozenset(shape(item) for item in value)
    return type(value), repr(value)


class Color(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Word(enum.StrEnum):
    YES = "yes"


class Text(str):
    __slots__ = ()


@dataclasses.dataclass
class Point:
    x: int


class Model(BaseModel):
    x: int


class Pair(NamedTuple):
    a: int


class Zone(tzinfo):
    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    dst = utcoffset

    def tzname(self, _: datetime | None) -> str:
        return "Z"


# The value, and a word of the remedy that the error names.
REFUSED: dict[str, tuple[Any, str]] = {
    "enum": (Color.RED, "value.value"),
    "int enum": (Level.LOW, "value.value"),
    "str enum": (Word.YES, "value.value"),
    "str subclass": (Text("a"), "str"),
    "dataclass": (Point(1), "asdict"),
    "model": (Model(x=1), "model_dump"),
    "named tuple": (Pair(1), "_asdict"),
    "ordered dict": (collections.OrderedDict(a=1), "dict"),
    "mapping": (types.MappingProxyType({"a": 1}), "dict"),
    "zone": (datetime(2024, 1, 1, tzinfo=Zone()), "zoneinfo"),
    "time's zone": (time(1, tzinfo=Zone()), "zoneinfo"),
    "large integer": (2**70, "str"),
    "surrogate": ("\ud800", "bytes"),
    "class": (Point, "name"),
    "object": (object(), "plain data"),
    "path": (Path("a"), "plain data"),
    "iterator": (iter([1]), "plain data"),
}
