"""docs/keys.md has a row for every key that the code names, and for no other."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from cache.keys import CacheKeys, intents_of, staged_of
from worker.keys import EngineKeys, QueueKeys
from worker.webhooks.policy import ENDED

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "keys.md").read_text(encoding="utf-8")
# Rows whose keys scripts, or their callers, compose of another key's name.
COMPOSED = {
    "arq:webhook-order:<digest>",
    "lc:{<agent>}:state:<scope>",
    "lc:{<agent>}:state@<organisation>:<scope>",
    "lc:{<agent>}:block:<label>",
    "lc:{<agent>}:context:<hash>",
    "lc:{<agent>}:lease:<kind>:<name>",
    "lc:{<agent>}:messages:state:<conversation>",
    "lc:{<agent>}:messages:lease:state:<conversation>",
    "lc:message:{<scope>:<id>}:body",
    "lc:message:{<scope>:<id>}:lease:body",
}
ARGUMENTS = {"priority": "default", "state": "dead"}
# The first part of many keys.
NOT_KEYS = {"prefix", "queue_name", "base", "llm"}


def patterns() -> list[str]:
    """The first column, one pattern each: `, :x` goes on behind the pattern before it."""
    found: list[str] = []
    for cell in re.findall(r"^\| `([^`]*)` \|", PAGE, re.MULTILINE):
        for each in cell.split(", "):
            end = found[-1].find("}") + 1 or len(found[-1]) if each.startswith(":") else 0
            for choice in alternatives(each):
                found.append(found[-1][:end] + choice if end else choice)
    return found


def alternatives(pattern: str) -> list[str]:
    """`a:b\\|c` is `a:b` and `a:c`; `a[b or c]` is `a`, `ab` and `ac`."""
    start, optional, rest = re.fullmatch(r"([^[]*)(?:\[([^]]*)\])?(.*)", pattern).groups()  # type: ignore[union-attr]
    start, _, last = start.rpartition(":") if "\\|" in start else (start, "", "")
    starts = [f"{start}:{each}" for each in last.split("\\|")] if last else [start]
    middles = ["", *optional.split(" or ")] if optional else [""]
    return [first + middle + rest for first, middle in product(starts, middles)]


def expression(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"<[^<>]*>", pattern)
    return re.compile("[^:]+".join(map(re.escape, parts)))


def built(keys: Any) -> Iterator[str]:
    """What each property and method of a builder of keys makes."""
    for name, member in inspect.getmembers_static(type(keys)):
        if name.startswith("_") or name in NOT_KEYS or isinstance(member, classmethod):
            continue
        found = getattr(keys, name)
        if callable(found) and not isinstance(found, str):
            wanted = inspect.signature(found).parameters
            found = found(*(ARGUMENTS.get(each, "1") for each in wanted))
        if isinstance(found, str):
            yield found
        elif isinstance(found, list):
            yield from found
        else:
            yield from (found.index, *built(found))


def named() -> set[str]:
    queue, cache = QueueKeys(), CacheKeys()
    entries = (cache.agent("1"), cache.windows("1"), cache.message("1", "1"))
    written = (cache.agent("1"), cache.message("1", "1"), cache.dependency("1"))
    return {
        *built(queue),
        *built(EngineKeys(queue)),
        *built(cache),
        *(queue.webhook_ended(state) for state in ENDED),
        *(staged_of(key, b"\1") for key in entries),
        *(intents_of(key) for key in (*written, cache.organisation("1"))),
    }


def test_every_named_key_has_a_row() -> None:
    rows = [expression(pattern) for pattern in patterns()]
    assert [key for key in named() if not any(row.fullmatch(key) for row in rows)] == []


def test_every_row_stands_for_a_named_key() -> None:
    keys = named()
    unknown = {each for each in patterns() if not any(map(expression(each).fullmatch, keys))}
    assert unknown <= COMPOSED


def test_no_key_has_two_rows() -> None:
    cells = re.findall(r"^\| `([^`]*)` \|", PAGE, re.MULTILINE)
    assert len(cells) > 90
    assert len(cells) == len(set(cells))
