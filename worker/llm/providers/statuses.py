"""
Reads the states that providers report, in the spellings of several of them. Pure.

An unknown state decides nothing: a batch in it has ended only if its time of ending says so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from worker.llm.answers import clipped

_STATUS_CHARS = 100
_ENDED = frozenset(
    {
        *("completed", "complete", "succeeded", "success", "done", "finished", "ended"),
        *("expired", "timeout", "timed_out", "timeout_exceeded"),
        *("cancelled", "canceled", "aborted", "stopped"),
        *("partially_succeeded", "partially_completed", "completed_with_errors"),
    }
)
_FAILED = frozenset({"failed", "failure", "error", "errored", "invalid", "rejected"})
_RUNNING = frozenset(
    {
        *("validating", "queued", "pending", "created", "submitted", "not_started", "scheduled"),
        *("in_progress", "running", "processing", "started", "finalizing", "paused"),
        *("cancelling", "canceling", "cancellation_requested", "stopping", "updating"),
    }
)
# A row has one of these times from its end on; before, it is null, 0 or the first of a calendar.
_TIMES = ("completed_at", "failed_at", "expired_at", "cancelled_at", "canceled_at", "ended_at")
# A file in another state is checked, converted or copied: a batch of it is refused meanwhile.
_USABLE_FILE = frozenset({"processed", "uploaded", "ready", "active", "succeeded", "completed"})
_BROKEN_FILE = frozenset({"error", "failed", "deleted"})
_NO_TIME = re.compile(r"\s*(-.*|[0.]*|null|none|0001-01-01.*|1970-01-01.*)\s*", re.IGNORECASE)
_UNREADY = re.compile(
    r"\bnot\b.{0,30}\b(found|ready|exist|available|processed|uploaded)|\bno such\b|n.t exist"
    r"|\b(pending|still|processing|uploading|in progress|being|try again|locate)\b",
    re.IGNORECASE,
)


def batch_status(row: Mapping[str, Any], name: str) -> tuple[str, bool, bool]:
    """The status as the provider spells it, whether the batch has ended, whether it was refused."""
    shown = clipped(row.get(name), _STATUS_CHARS)
    status = _plain(shown)
    if status in _FAILED:
        return shown, True, True
    if status in _ENDED or status in _RUNNING:
        return shown, status in _ENDED, False
    ended = [time for time in _TIMES if _is_time(row.get(time))]
    return shown, bool(ended), ended == ["failed_at"]


def is_known(shown: str) -> bool:
    """Whether this is a state that `batch_status` knows."""
    return _plain(shown) in _ENDED | _FAILED | _RUNNING


def is_file_unready(row: Mapping[str, Any] | None, refusal: str) -> bool:
    """
    Whether a batch was refused only because its file cannot be used yet.

    `row` is the file as the provider shows it, None if it does not; `refusal` its words.
    """
    status = "" if row is None else _plain(clipped(row.get("status") or "", _STATUS_CHARS))
    if status in _BROKEN_FILE:
        return False
    if status and status not in _USABLE_FILE:
        return True
    # Services of one provider may see a file at different times, so its words count as well.
    words = _words(refusal)  # a code is one word: file_not_found
    return "file" in words.lower() and _UNREADY.search(words) is not None


def _is_time(value: Any) -> bool:
    """Whether this is a time, in seconds or as text, and not what stands for none."""
    if isinstance(value, int | float):
        return value > 0
    return bool(value) and not (isinstance(value, str) and _NO_TIME.fullmatch(value))


def _words(text: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_+", " ", text)


def _plain(status: str) -> str:
    """`JOB_STATE_IN_PROGRESS`, `In Progress` and `inProgress` are `in_progress`."""
    text = re.sub(r"[^a-z0-9]+", "_", _words(status.strip()).lower()).strip("_")
    return text.removeprefix("job_state_").removeprefix("batch_").removeprefix("status_")
