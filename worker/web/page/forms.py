"""Reads forms and cookies of the page, and sets cookies that no script and no other site sees."""

from __future__ import annotations

import hmac
import re
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from worker.errors import InvalidArgument
from worker.web.access import Refused
from worker.web.api.routes import read_body

_FORM = "application/x-www-form-urlencoded"
_LOCAL = re.compile(r"/[a-z]*(\?[!-\[\]-~]*)?")
_MOST_FIELDS = 20


async def form_of(request: Request) -> dict[str, str]:
    """
    The fields of a form that this browser was given by us.

    Raises:
        Refused: it is no form, too long, or another site sent it.
        InvalidArgument: it is not readable, or has a field twice.
    """
    if request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
        raise Refused(403, "another site sent this form")
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _FORM:
        raise Refused(415, f"send {_FORM}")
    try:
        text = (await read_body(request)).decode("ascii")
        pairs = parse_qsl(
            text, keep_blank_values=True, strict_parsing=True, max_num_fields=_MOST_FIELDS
        )
    except ValueError as exc:
        raise InvalidArgument(f"the form cannot be read: {exc}") from None
    found = dict(pairs)
    if len(found) < len(pairs):
        raise InvalidArgument("a field was given twice")
    return found


def local(path: str) -> str:
    """The path where it is one of ours; a foreign one would lead visitors astray."""
    return path if _LOCAL.fullmatch(path) else "/"


def cookie(request: Request, name: str) -> str:
    return request.cookies.get(_cookie_name(request, name), "")


def with_cookie(shown: Response, request: Request, name: str, value: str, age_s: int) -> Response:
    shown.set_cookie(
        _cookie_name(request, name),
        value,
        max_age=age_s,
        secure=_is_https(request),
        httponly=True,
        samesite="strict",
    )
    return shown


def _cookie_name(request: Request, name: str) -> str:
    # A browser takes this prefix only by https, and from no other host of the domain.
    return f"{'__Host-' if _is_https(request) else ''}letta_{name}"


def _is_https(request: Request) -> bool:
    return "https" in (request.url.scheme, request.headers.get("x-forwarded-proto"))


def is_same(expected: str, given: str) -> bool:
    return expected != "" and hmac.compare_digest(
        expected.encode("utf-8", "replace"), given.encode("utf-8", "replace")
    )
