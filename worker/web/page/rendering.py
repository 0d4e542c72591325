"""Renders templates into replies: everything is escaped, and unprintable characters are shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from starlette.responses import Response

from worker.terminal import printable, printable_lines

# The page loads nothing from elsewhere, runs no inline script, and is in nobody's frame.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        *(f"{kind}-src 'self'" for kind in ("style", "script", "img", "font", "connect")),
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
)
SECURITY_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
_MOST_SHORT, _MOST_LINES = 160, 20_000
_FOLDER = Path(__file__).parent


def static_file(name: str) -> bytes:
    return (_FOLDER / "static" / name).read_bytes()


@cache
def environment() -> Environment:
    """The templates, each compiled once, with filters for what the page shows."""
    found = Environment(
        loader=FileSystemLoader(_FOLDER / "templates"),
        autoescape=True,
        auto_reload=False,
        finalize=_shown,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    found.filters.update(
        exact=_exact, lines=_lines, short=_short, moment=_moment, age=_age, size=_size, count=_count
    )
    found.globals["link"] = link
    return found


def reply(text: str, status: int = 200) -> Response:
    """An HTML page that no cache keeps."""
    headers = {**SECURITY_HEADERS, "cache-control": "no-store"}
    body = text.encode("utf-8", "replace")
    return Response(body, status, headers, media_type="text/html; charset=utf-8")


def link(path: str, fields: Mapping[str, Any] | None = None, **more: Any) -> str:
    """A path of the page with those parameters that have a value."""
    pairs = {
        name: str(value)
        for name, value in {**(fields or {}), **more}.items()
        if value not in (None, "")
    }
    query = urlencode(pairs, errors="replace")
    return f"{path}?{query}" if query else path


def _shown(value: Any) -> Any:
    """What a template prints. Text of ours that is markup already stays as it is."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable(value)
    return "" if value is None else value


def _exact(value: str) -> Markup:
    """The unchanged value, for a field that a form sends back; unprintable characters as numbers."""
    if value.isprintable():
        return escape(value)
    return Markup("").join(
        char if char.isprintable() else Markup("&#{};").format(ord(char)) for char in value
    )


def _lines(text: str) -> Markup:
    """A text of several lines; of a long one the beginning."""
    found = escape(printable_lines(text[:_MOST_LINES]))
    return found + f"\n({len(text):,} characters in all)" if len(text) > _MOST_LINES else found


def _short(text: str) -> str:
    """The first line of a text, for a cell of a table."""
    first = text[: 2 * _MOST_SHORT].strip().partition("\n")[0]
    return first if len(first) <= _MOST_SHORT else f"{first[:_MOST_SHORT]}…"


def _moment(value: datetime | None) -> Markup | str:
    """A time in UTC; the script of the page turns it into the reader's own."""
    if value is None:
        return ""
    at = value.astimezone(UTC)
    return Markup('<time datetime="{}">{}</time>').format(
        at.isoformat(timespec="milliseconds"), f"{at:%Y-%m-%d %H:%M:%S} UTC"
    )


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _size(count: int) -> str:
    for unit, size in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def _count(value: int | Sequence[Any]) -> str:
    return f"{value if isinstance(value, int) else len(value):,}"
