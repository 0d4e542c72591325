"""Reads stored dead letters; of a damaged one, whatever can be read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis.exceptions import ResponseError

from cache.encoding import codec
from cache.errors import CodecError
from worker.numbers import moment, whole

# All that a filter asks for: the body may be large.
SHOWN = ("name", "reason", "error", "tries", "queue", "died")
_QUEUES = ("critical", "high", "default", "low")


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """
    One dead job.

    reason: exhausted, permanent, failed, poison, expired, undecodable or unknown.
    body: the bytes that were enqueued, unchanged.
    """

    id: str
    name: str
    reason: str
    error: str
    tries: int
    priority: str
    died_at: datetime
    body: bytes


def letter_of(id_: str, row: dict[bytes, bytes] | ResponseError) -> DeadLetter:
    """From what is stored; where somebody changed that, whatever of it can be shown."""
    if isinstance(row, ResponseError):
        if not str(row).startswith("WRONGTYPE"):
            raise row
        row = {b"reason": b"undecodable", b"error": b"the dead letter's key is not a hash"}
    body = row.get(b"body", b"")
    return DeadLetter(
        id=id_,
        name=_text(row, b"name") or _name_in(body),
        reason=_text(row, b"reason") or "undecodable",
        error=_text(row, b"error"),
        tries=whole(row.get(b"tries")),
        priority=_QUEUES[(whole(row.get(b"queue"), most=len(_QUEUES)) or 3) - 1],
        died_at=moment(row.get(b"died")),
        body=body,
    )


def shown_row(row: list[bytes | None] | ResponseError) -> dict[bytes, bytes] | ResponseError:
    if isinstance(row, ResponseError):
        return row
    return {name.encode(): value for name, value in zip(SHOWN, row, strict=True) if value}


def name_and_reason(row: list[bytes | None] | ResponseError) -> tuple[str, str]:
    if isinstance(row, ResponseError):
        if not str(row).startswith("WRONGTYPE"):
            raise row
        row = [None, None]
    name, reason = ((part or b"").decode(errors="replace") for part in row)
    return name, reason or "undecodable"


def without_expiry(body: bytes) -> bytes:
    """Return the body without its expiry, if it has one."""
    fields = fields_of(body)
    options = fields.get("o")
    if not isinstance(options, dict) or "x" not in options:
        return body
    return codec.encode({**fields, "o": {k: v for k, v in options.items() if k != "x"}})


def _name_in(body: bytes) -> str:
    return str(fields_of(body).get("f", "<unknown>"))


def fields_of(body: bytes) -> dict[str, Any]:
    """Return the fields of a job's body; {} for bytes that are none."""
    try:
        fields = codec.decode(body)
    except CodecError:
        return {}
    return fields if isinstance(fields, dict) else {}


def _text(row: dict[bytes, bytes], name: bytes) -> str:
    return row.get(name, b"").decode(errors="replace")
