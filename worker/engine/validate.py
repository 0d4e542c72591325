"""
Validates a decoded job before any of its fields is used. Pure.

Whoever can write to the server can store any value there. A malformed job ends
as an undecodable dead letter before any of it reaches a script or the event
loop. docs/arq.md and worker/queue/client.py describe the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.numbers import MOST_MS

_MOST_TRIES = 1_000_000
_FIELDS = ("t", "f", "a", "k", "et")
_MOST_NAME, _MOST_ID, _MOST_DELAY_MS = 1000, 1000, 366 * 86_400_000


class Misformed(ValueError):
    """The body can be decoded, but is not a job; the message names the field."""


def read_fields(fields: Any) -> tuple[int | None, str, Any, Mapping[str, Any], int]:
    """
    Validate the fields of a job, stock arq's or ours; returns its t, f, a, k and et.

    Raises:
        Misformed: a field is missing, or has a wrong type or size.
    """
    # This runs for every job: subscripts and one expression take half the time of calls.
    try:
        name, args, kwargs, et = fields["f"], fields["a"], fields["k"], fields["et"]
        if (
            type(name) is str
            and 0 < len(name) <= _MOST_NAME
            and type(args) is list
            and type(kwargs) is dict
            and (not kwargs or all(type(key) is str for key in kwargs))
            and type(et) is int
            and 0 <= et <= MOST_MS
            and fields["t"] is None
        ):
            return None, name, args, kwargs, et
    except (LookupError, TypeError):
        pass  # a field is missing, or this is no mapping: said below
    _need(isinstance(fields, Mapping), "the body is not a mapping")
    return _read_other(*map(fields.get, _FIELDS))


def _read_other(
    tries: Any, name: Any, args: Any, kwargs: Any, et: Any
) -> tuple[int | None, str, Any, Mapping[str, Any], int]:
    _need(tries is None or _is_whole(tries, _MOST_TRIES), "t is not a number of tries")
    _need(_is_text(name, _MOST_NAME), "f is not a function name")
    _need(isinstance(args, list | tuple), "a is not a list of arguments")
    _need(
        isinstance(kwargs, Mapping) and all(isinstance(key, str) for key in kwargs),
        "k has other keys",
    )
    _need(_is_whole(et, MOST_MS), "et is not a time")
    return tries, name, args, kwargs, et


def check_options(options: Any) -> None:
    """
    Validate our own options, a body's `o`.

    Raises:
        Misformed: an option has a wrong type or size.
    """
    _need(isinstance(options, Mapping), "o is not a mapping")
    expires, unique, then, part = (options.get(name) for name in ("x", "u", "then", "g"))
    _need(expires is None or _is_whole(expires, MOST_MS), "o.x is not a time")
    _need(unique is None or _is_text(unique, _MOST_ID), "o.u is not a unique key")
    if then is not None:
        _check_then(then)
    if part is not None:
        _need(isinstance(part, Mapping), "o.g is not a mapping")
        _need(_is_text(part.get("id"), _MOST_ID), "o.g.id is not an id")
        _need(_is_whole(part.get("i"), _MOST_TRIES), "o.g.i is not an index")


def _check_then(then: Any) -> None:
    _need(isinstance(then, Mapping), "o.then is not a mapping")
    _need(_is_text(then.get("f"), _MOST_NAME), "o.then.f is not a function name")
    _need(isinstance(then.get("a"), list), "o.then.a is not a list of arguments")
    _need(isinstance(then.get("k"), Mapping), "o.then.k is not a mapping")
    _need(_is_text(then.get("q"), _MOST_ID), "o.then.q is not a priority")
    _need(then.get("id") is None or _is_text(then["id"], _MOST_ID), "o.then.id is not an id")
    _need(_is_whole(then.get("delay"), _MOST_DELAY_MS), "o.then.delay is not a delay")
    _need(
        then.get("xs") is None or _is_whole(then["xs"], _MOST_DELAY_MS), "o.then.xs is not a delay"
    )
    _need(isinstance(then.get("o"), Mapping), "o.then.o is not a mapping")


def _need(is_so: bool, problem: str) -> None:
    if not is_so:
        raise Misformed(problem)


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value) <= most


def _is_whole(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most
