"""Checks every argument of a caller before anything is stored."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from cache.names import MAX_NAME, name_problem
from worker.errors import InvalidArgument, InvalidWebhookURL, NotSerializable, PayloadTooLarge
from worker.http.urls import MAX_URL, BadURL, read_url
from worker.queue.calls import Call, Unique
from worker.queue.priority import Priority

MAX_DELAY_S = 366 * 86_400.0
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")
# Signatures cover `id.timestamp.body`: an id with a dot would let one signature fit two messages.
_WEBHOOK_ID = re.compile(r"[A-Za-z0-9_:-]{1,128}")
_PLAIN = frozenset({str, int, float, bool, type(None)})
_NAME = re.compile(r"[\w.:<>-]{1,256}")
# Prefixes of the ids of our own jobs. A caller's job with such an id could be mistaken for ours.
OWN_JOBS = (
    "cron:", "llm:", "startup:", "webhook:", "webhook-end:", "webhook-ended:", "webhook-replay:",
)  # fmt: skip


def require_name(what: str, value: Any, *, longest: int = MAX_NAME) -> None:
    """
    Refuse a value that is not text, is empty, too long, not UTF-8 or has control characters.

    This is the only check of ids that are looked up: stock clients choose ids freely.
    """
    problem = name_problem(value, longest=longest)
    if problem is not None:
        raise InvalidArgument(f"{what} {problem}")


def require_job_name(name: Any, what: str = "name") -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise InvalidArgument(f"{what} is not a job name: 1-256 letters, digits and _ . : < > -")


def require_job_id(what: str, value: Any) -> None:
    """Check the id that a caller gives to a new job."""
    require_id(what, value)
    require_not_our_job(what, value)


def require_not_our_job(what: str, value: str) -> None:
    if value.startswith(OWN_JOBS):
        reserved = " ".join(OWN_JOBS)
        raise InvalidArgument(
            f"{what} {value[:20]!r} begins with a reserved prefix; choose another ({reserved})"
        )


def require_webhook_id(value: Any) -> None:
    if not isinstance(value, str) or not _WEBHOOK_ID.fullmatch(value):
        raise InvalidArgument("webhook_id must be 1-128 of A-Z a-z 0-9 _ : -")


def require_keywords(what: str, given: Any) -> None:
    """Check a job's keyword arguments: names are text and none is a parameter of ours."""
    if given is None:
        return
    if type(given) is not dict and not isinstance(given, Mapping):
        raise InvalidArgument(f"{what} must be a mapping, not {type(given).__name__}")
    for name in given:
        if not isinstance(name, str) or name in {"name", "_options"}:
            raise InvalidArgument(
                f"{what} has a key that cannot be an argument's name: {name!r}; rename it"
            )


def require_priority(priority: Priority | str) -> Priority:
    if type(priority) is Priority:
        return priority
    try:
        return Priority(priority)
    except ValueError:
        accepted = ", ".join(Priority)
        raise InvalidArgument(
            f"priority {priority!r} does not exist; accepted: {accepted}"
        ) from None


def require_event_type(event_type: str) -> None:
    if not isinstance(event_type, str) or not re.fullmatch(r"[\x21-\x7e]{1,128}", event_type):
        raise InvalidArgument("event_type must be 1-128 printable ASCII characters, no spaces")


def webhook_body(payload: Any, *, max_bytes: int) -> bytes:
    """
    Encode the bytes to sign and send: bytes unchanged, anything else as compact JSON.

    Raises:
        NotSerializable: the payload is not JSON, or has a key that is no text.
        PayloadTooLarge: the body is over `max_bytes`.
    """
    if isinstance(payload, bytes | bytearray | memoryview):
        body = bytes(payload)
    else:
        try:
            text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
            body = text.encode()
        except (TypeError, ValueError, RecursionError) as exc:
            raise NotSerializable(f"the payload is not JSON: {exc}") from None
        problem = key_problem(payload)
        if problem is not None:
            raise NotSerializable(f"the payload {problem}")
    if len(body) > max_bytes:
        raise PayloadTooLarge(
            "the webhook body", len(body), max_bytes, "LETTA_WEBHOOK_MAX_BODY_BYTES"
        )
    return body


def key_problem(value: Any) -> str | None:
    """JSON's keys are text; the encoder would turn 1, None and True into it without a word."""
    containers: list[Any] = [value]
    for container in containers:  # grows while it is read
        inside = container
        if isinstance(container, dict):
            for key in container:
                if type(key) is not str and not isinstance(key, str):
                    return f"has a key that is no text: {key!r}; pass str(key)"
            inside = container.values()
        elif not isinstance(container, list | tuple):
            continue
        containers += [each for each in inside if type(each) not in _PLAIN]
    return None


def require_id(what: str, value: Any) -> None:
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise InvalidArgument(f"{what} must be 1-128 of A-Z a-z 0-9 _ . : -")


def delay_ms(delay_s: float) -> int:
    if not isinstance(delay_s, int | float) or not math.isfinite(delay_s):
        raise InvalidArgument("delay_s must be a number of seconds")
    if not 0 <= delay_s <= MAX_DELAY_S:
        raise InvalidArgument(f"delay_s must be from 0 to {MAX_DELAY_S:.0f} seconds, not {delay_s}")
    return round(delay_s * 1000)


def unix_ms(what: str, moment: datetime) -> int:
    if not isinstance(moment, datetime) or moment.tzinfo is None:
        raise InvalidArgument(f"{what} must be a datetime with a time zone")
    return int(moment.timestamp() * 1000)


def require_call(what: str, call: Any) -> Priority:
    """Check a call's name, id, arguments and priority; returns its priority."""
    if not isinstance(call, Call):
        raise InvalidArgument(f"{what} must be a Call, not {type(call).__name__}")
    require_job_name(call.name, f"{what}'s name")
    if call.job_id is not None:
        require_job_id(f"{what}'s job_id", call.job_id)
    if not isinstance(call.args, tuple | list):
        raise InvalidArgument(f"{what}'s args must be a tuple, not {type(call.args).__name__}")
    require_keywords(f"{what}'s kwargs", call.kwargs)
    return require_priority(call.priority)


def require_unique(unique: Unique | str | None) -> Unique | None:
    """Check a unique key and its scope."""
    if unique is None:
        return None
    lock = unique if isinstance(unique, Unique) else Unique(unique)
    require_name("unique", lock.key, longest=256)
    if lock.scope not in ("queued", "running", "window"):
        raise InvalidArgument(f"{lock.scope!r} is not a scope; accepted: queued, running, window")
    if (lock.scope == "window") != (lock.window_s is not None):
        raise InvalidArgument("the scope window needs window_s; other scopes must not have it")
    return lock


def window_ms(lock: Unique | None) -> int | None:
    """The length of a unique key's window; None for the other scopes."""
    if lock is None or lock.window_s is None:
        return None
    return max(1, delay_ms(lock.window_s))


def require_webhook_url(url: Any, what: str = "url") -> str:
    """Return the URL as it is stored and sent: its host and other Unicode text in ASCII."""
    problem = name_problem(url, longest=MAX_URL)
    if problem is None and (" " in url or not url.isprintable()):
        problem = "must have no spaces or invisible characters"
    try:
        if problem is None:
            return read_url(url).text
    except BadURL as exc:
        problem = str(exc)
    raise InvalidWebhookURL(f"{what} is not a webhook URL: it {problem}")
