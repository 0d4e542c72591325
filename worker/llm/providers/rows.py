"""
Reads the rows of a provider's JSON: ids that can be used, lists that are lists.

An id goes into paths, into Redis and into logs, so it is short printable ASCII.
One that is not would be asked for in vain again and again; its batch ends instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from worker.errors import Permanent

_ID = re.compile(r"[\x21-\x7e]{1,256}")
# A list longer than this is not gone through: at 100 rows a page, a hundred thousand.
MOST_PAGES = 1000


def id_of(row: Mapping[str, Any], what: str) -> str:
    """
    A row's id.

    Raises:
        Permanent: it has none that can be used.
    """
    found = usable_id(row.get("id"))
    if found is None:
        raise Permanent(f"the provider named the {what} with no id that can be used")
    return found


def usable_id(value: Any) -> str | None:
    """An id as text, or None."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**30:
        value = str(value)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        return None
    # Some servers' ids have slashes; none may climb out of the path that it is put into.
    return None if {"", ".", ".."} & set(value.split("/")) else value


def in_path(id_: str) -> str:
    """An id for a path: no query, fragment or escape begins in it."""
    return quote(id_, safe="/:@=,~")


def rows_of(page: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The objects of a list page."""
    rows = page.get("data")
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def page_after(rows: list[Mapping[str, Any]], before: str | None) -> str | None:
    """The id behind which the list goes on; None where it does not say, or says it again."""
    found = usable_id(rows[-1].get("id")) if rows else None
    return None if found == before else found


def mapping(value: Any) -> Mapping[str, Any]:
    """The value where it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}
