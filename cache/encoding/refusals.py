"""Explains why a value cannot be encoded: which part, and what to pass instead. Never shows content."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from enum import Enum
from typing import Any

from cache.encoding.extensions import ForeignZone
from cache.encoding.models import is_model
from cache.errors import NotEncodable

_FIELD_NAME = re.compile(r"[A-Za-z_]\w{0,39}")
_CONTAINERS = (dict, list, tuple, set, frozenset)
_MOST_STEPS = 20
# An enum's member may be an int or text as well, so the order counts.
_REMEDIES: tuple[tuple[type, str], ...] = (
    (type, "its name"),
    (Enum, "value.value"),
    (BaseException, "str(value)"),
    (Mapping, "dict(value)"),
    *((kind, f"{kind.__name__}(value)") for kind in (int, float, str, bytes, list, tuple, set)),
    (frozenset, "frozenset(value)"),
    (datetime, "a datetime of the standard library"),
)


def refusal(value: Any, exc: Exception, encode: Callable[[Any], object]) -> NotEncodable:
    """Build the error for a value that `encode` refused with `exc`."""
    path, part = "", value
    for _ in range(_MOST_STEPS):
        found = _refused_part(part, encode)
        if found is None:
            return NotEncodable(_problem(part, exc), path)
        step, part, exc = found
        path += step
    return NotEncodable(_problem(value, exc), "")


def _refused_part(value: Any, encode: Callable[[Any], object]) -> tuple[str, Any, Exception] | None:
    for step, part in _parts(value):
        try:
            encode(part)
        except Exception as exc:  # noqa: BLE001  (a foreign object may raise anything)
            return step, part, exc
    return None


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """The parts of a container, each with its place. A key may be a secret, a field's name is not."""
    if type(value) is dict:
        for key, item in value.items():
            is_name = isinstance(key, str) and _FIELD_NAME.fullmatch(key)
            yield " (a key)", key
            yield f"[{key!r}]" if is_name else "[...]", item
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif type(value) in (set, frozenset):
        for item in value:
            yield " (an item)", item


def _problem(value: Any, exc: Exception) -> str:
    kind = type(value)
    if kind is int:
        return "is an integer of more than 64 bits; pass str(value)"
    if kind is str:
        return "is text with a lone surrogate, which UTF-8 lacks; pass bytes"
    if kind in _CONTAINERS:
        return f"is a {kind.__name__} that is nested too deep, or contains itself; flatten it"
    if isinstance(exc, ForeignZone):
        return f"has the time zone {exc}, which cannot be stored; use zoneinfo.ZoneInfo or UTC"
    return f"is of the type {kind.__name__}, which would not arrive as given; pass {_remedy(value)}"


def _remedy(value: Any) -> str:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return "dataclasses.asdict(value)"
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return "value._asdict()"
    if is_model(value):
        return "value.model_dump()"
    found = (remedy for kind, remedy in _REMEDIES if isinstance(value, kind))
    return next(found, "plain data, or an id to find it by")
