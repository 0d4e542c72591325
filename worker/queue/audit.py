"""Keeps what operators changed: who did what to which job, endpoint or batch, and how it ended."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from worker.errors import InvalidArgument
from worker.keys import AUDIT_MAX, QueueKeys
from worker.numbers import moment
from worker.queue.job import reach

_ID = re.compile(r"[1-9][0-9]{0,18}-[0-9]{1,19}")
_MOST_ROWS = 1000
# Longer names come from outside; nobody reads them.
_MOST_CHARS = 1024


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One action. `id` orders entries; `outcome` is what the action said, or why it was refused."""

    id: str
    at: datetime
    actor: str
    action: str
    subject: str
    outcome: str


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Entries, newest first. `cursor` gives the next page; "" after the last one."""

    entries: list[AuditEntry]
    cursor: str


class AuditTrail:
    """Writes and reads the trail through one client."""

    def __init__(self, client: Any, keys: QueueKeys) -> None:
        self._client = client
        self._keys = keys

    async def record(self, actor: str, action: str, subject: str, outcome: str) -> None:
        """Add an entry; of a long text the beginning is kept."""
        texts = {"actor": actor, "action": action, "subject": subject, "outcome": outcome}
        fields = {name: _clean(text) for name, text in texts.items()}
        await reach(self._client.xadd(self._keys.audit, fields, maxlen=AUDIT_MAX, approximate=True))

    async def page(self, *, limit: int = 100, cursor: str = "") -> AuditPage:
        """
        Return entries, newest first, behind the cursor of the page before.

        Raises:
            InvalidArgument: a limit outside 1 to 1,000, or no cursor of a page.
        """
        if type(limit) is not int or not 1 <= limit <= _MOST_ROWS:
            raise InvalidArgument(f"limit must be 1 to {_MOST_ROWS:,}, not {limit!r}")
        if cursor and not _ID.fullmatch(cursor):
            raise InvalidArgument("cursor is not one that a page gave")
        newest = f"({cursor}" if cursor else "+"
        rows = await reach(self._client.xrevrange(self._keys.audit, newest, "-", count=limit + 1))
        entries = [_entry(id_.decode(), fields) for id_, fields in rows[:limit]]
        return AuditPage(entries, entries[-1].id if len(rows) > limit else "")


def _entry(id_: str, fields: dict[bytes, bytes]) -> AuditEntry:
    texts = [
        fields.get(name, b"").decode(errors="replace")
        for name in (b"actor", b"action", b"subject", b"outcome")
    ]
    return AuditEntry(id_, moment(id_.partition("-")[0]), *texts)


def _clean(text: str) -> bytes:
    return text[:_MOST_CHARS].encode(errors="replace")
