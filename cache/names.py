"""
Checks names at the door: ids, scopes, organisations, tags and the like, before any is used.

A name ends in a key, a header, a log line or a signature. Text that UTF-8 cannot
encode (`json.loads` makes lone surrogates) fails in the middle of a call; a control
character forges log lines and joins names that belong apart; without a limit on its
length a name is a payload. So each public method calls `check_name` first.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from unicodedata import category

from cache.errors import InvalidName

MAX_NAME = 512

# Ids that passed, so that a cache hit costs one look-up. Forgotten together when they are many.
_MOST_PASSED, _LONGEST_PASSED = 16_384, 64
_passed_agents: set[str] = set()
_passed_names: set[str] = set()


def name_problem(value: Any, *, longest: int = MAX_NAME) -> str | None:
    """What is wrong with a name, to be read after the argument's own name; None when nothing is."""
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    if not 1 <= len(value) <= longest:
        return f"must have 1 to {longest} characters, not {len(value)}"
    if value.isprintable():
        return None
    # Spaces, joiners and marks of direction are not printable either, but do no harm here.
    for place, character in enumerate(value):
        kind = category(character)
        if kind == "Cs":
            return f"must be valid Unicode, but character {place} is a lone surrogate"
        if kind in {"Cc", "Zl", "Zp"}:
            return f"must have no control characters or line breaks, as character {place} is"
    return None


def check_name(what: str, value: Any, *, longest: int = MAX_NAME) -> None:
    """
    Refuse what cannot be a name; `what` is the argument's.

    Raises:
        InvalidName: not text, empty, too long, not UTF-8 encodable, or with control characters.
    """
    try:
        if longest == MAX_NAME and value in _passed_names:
            return
    except TypeError:
        pass  # what cannot be hashed is no text
    problem = name_problem(value, longest=longest)
    if problem is not None:
        raise InvalidName(f"{what} {problem}")
    if longest == MAX_NAME:
        _remember(value, _passed_names)


def check_scope(scope: Any) -> None:
    """The same for a variant's name, which may be empty."""
    if scope != "":
        check_name("scope", scope)


def check_agent_id(agent_id: Any) -> None:
    """
    The same for an agent's id, which is a hash tag and so has no braces.

    Raises:
        InvalidName.
    """
    try:
        if agent_id in _passed_agents:
            return
    except TypeError:
        pass  # what cannot be hashed is no text
    problem = name_problem(agent_id)
    if problem is None and ("{" in agent_id or "}" in agent_id):
        problem = "must have no braces"
    if problem is not None:
        raise InvalidName(f"agent_id {problem}")
    _remember(agent_id, _passed_agents)


def checked_names(what: str, values: Iterable[Any], *, longest: int = MAX_NAME) -> tuple[str, ...]:
    """
    Several names, all checked before any is used.

    Raises:
        InvalidName: one of them is odd, or a single text was given for a list of them.
    """
    names = _listed(what, values)
    for name in names:
        check_name(what, name, longest=longest)
    return names


def checked_agent_ids(values: Iterable[Any]) -> tuple[str, ...]:
    """The same for ids of agents."""
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
