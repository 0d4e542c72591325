"""
Reads ids and lists from a provider's JSON and checks their form.

Ids are used in paths, in Redis and in logs, so they must be short printable ASCII.
A batch with another id could never be polled, so it ends with an error instead.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from worker.errors import Permanent
from worker.llm.answers import clipped
from worker.llm.providers.protocol import RemoteBatch
from worker.llm.providers.statuses import batch_status
from worker.numbers import whole

_ERROR_CHARS, _STATUS_CHARS = 300, 100
_ID = re.compile(r"[\x21-\x7e]{1,256}")
# Pages read of a list: at 100 rows a page, 100,000 rows.
MOST_PAGES = 1000


def id_of(row: Mapping[str, Any], what: str) -> str:
    """
    Return a row's id.

    Raises:
        Permanent: the row has no valid id.
    """
    found = usable_id(row.get("id"))
    if found is None:
        raise Permanent(f"the provider returned no valid id of the {what}")
    return found


def usable_id(value: Any) -> str | None:
    """The id as text, or None when it is not valid."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**30:
        value = str(value)
    if not isinstance(value, str) or not _ID.fullmatch(value):
        return None
    # Ids of some servers contain slashes; none may leave the path that contains it.
    return None if {"", ".", ".."} & set(value.split("/")) else value


def in_path(id_: str) -> str:
    """Quote an id for a path, so that it starts no query, fragment or escape."""
    return quote(id_, safe="/:@=,~")


def rows_of(page: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The objects of a list page."""
    rows = page.get("data")
    return [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []


def page_after(rows: list[Mapping[str, Any]], before: str | None) -> str | None:
    """The id after which the list continues; None when it is missing or repeated."""
    found = usable_id(rows[-1].get("id")) if rows else None
    return None if found == before else found


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def openai_batch(row: Mapping[str, Any], id_: str) -> RemoteBatch:
    """A batch as OpenAI shows it."""
    status, ended, failed = batch_status(row, "status")
    files = (row.get("output_file_id"), row.get("error_file_id"))
    data = mapping(row.get("errors")).get("data")
    counts = mapping(row.get("request_counts"))
    errors = [e for e in data if isinstance(e, Mapping)] if isinstance(data, list) else []
    return RemoteBatch(
        id=id_,
        status=status,
        ended=ended,
        # error_file_id may be absent or empty.
        files=tuple(id_of({"id": name}, "file") for name in files if name),
        failed=failed,
        error=clipped("; ".join(_reason(e) for e in errors[:3]), _ERROR_CHARS),
        code=clipped(errors[0].get("code") or "", _STATUS_CHARS) if errors else "",
        bad_lines={whole(e.get("line")): _reason(e) for e in errors if whole(e.get("line"))},
        results=whole(counts.get("completed")) + whole(counts.get("failed")),
    )


def _reason(error: Mapping[str, Any]) -> str:
    return clipped(error.get("message") or error.get("code"), _ERROR_CHARS)
