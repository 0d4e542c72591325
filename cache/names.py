"""
Checks names from callers (ids, scopes, organizations, tags) before any is used.

A name becomes part of a key, a header, a log line or a signature. Text that UTF-8
cannot encode (`json.loads` makes lone surrogates) would fail in the middle of a
call. A control character could forge log lines, or make two different names equal.
Without a limit, a name could be a payload. So each public method checks its names
first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unicodedata import category

from cache.errors import InvalidName

MAX_NAME = 512

# Names that passed the check, so that a hit costs one lookup. Cleared when there are too many.
_MOST_PASSED, _LONGEST_PASSED = 16_384, 64
_passed_agents: set[str] = set()
_passed_names: set[str] = set()


def name_problem(value: Any, *, longest: int = MAX_NAME) -> str | None:
    """What is wrong with a name, to follow the argument's name in an error. None if it is valid."""
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    if not 1 <= len(value) <= longest:
        return f"must have 1 to {longest} characters, not {len(value)}"
    if value.isprintable():
        return None
    # Spaces, joiners and direction marks are not printable either, but harmless.
    for place, character in enumerate(value):
        kind = category(character)
        if kind == "Cs":
            return f"must be valid Unicode, but character {place} is a lone surrogate"
        if kind in {"Cc", "Zl", "Zp"}:
            return f"must have no control characters or line breaks, as character {place} is"
    return None


def check_name(what: str, value: Any, *, longest: int = MAX_NAME) -> None:
    """
    Refuse a value that is no valid name. `what` is the argument's name, for the error.

    Raises:
        InvalidName: the value is no text, is empty or too long, cannot be encoded as UTF-8, or
            contains control characters.
    """
    try:
        if longest == MAX_NAME and value in _passed_names:
            return
    except TypeError:
        pass  # unhashable, so no text: the check below refuses it
    problem = name_problem(value, longest=longest)
    if problem is not None:
        raise InvalidName(f"{what} {problem}")
    if longest == MAX_NAME:
        _remember(value, _passed_names)


def check_scope(scope: Any) -> None:
    """As `check_name` for a scope, which may be empty."""
    if scope != "":
        check_name("scope", scope)


def check_agent_id(agent_id: Any) -> None:
    """
    As `check_name` for an agent's id. It is a hash tag, so it must have no braces.

    Raises:
        InvalidName: see `check_name`; or it has braces.
    """
    try:
        if agent_id in _passed_agents:
            return
    except TypeError:
        pass  # unhashable, so no text: the check below refuses it
    problem = name_problem(agent_id)
    if problem is None and ("{" in agent_id or "}" in agent_id):
        problem = "must have no braces"
    if problem is not None:
        raise InvalidName(f"agent_id {problem}")
    _remember(agent_id, _passed_agents)


def checked_names(what: str, values: Iterable[Any], *, longest: int = MAX_NAME) -> tuple[str, ...]:
    """
    Check a list of names, all before any is used, and return it as a tuple.

    Raises:
        InvalidName: one is not valid, or a single text was passed instead of a list.
    """
    names = _listed(what, values)
    for name in names:
        check_name(what, name, longest=longest)
    return names


def checked_agent_ids(values: Iterable[Any]) -> tuple[str, ...]:
    """As `checked_names` for ids of agents."""
    names = _listed("agent_ids", values)
    for name in names:
        check_agent_id(name)
    return names


def _remember(value: str, passed: set[str]) -> None:
    if len(value) <= _LONGEST_PASSED:
        if len(passed) >= _MOST_PASSED:
            passed.clear()
        passed.add(value)


def _listed(what: str, values: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(values, str | bytes):
        raise InvalidName(f"{what} must be a list of names, not one {type(values).__name__}")
    try:
        return tuple(values)
    except TypeError:
        raise InvalidName(f"{what} must be a list of names, not {type(values).__name__}") from None
