"""
Checks the token in a request's header, and limits how often wrong ones can be tried.

The sign-in form counts apart: guesses there keep no scraper out, and guesses here no operator.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from math import ceil
from typing import TypeVar

from starlette.requests import Request

from cache.logs import get_logger
from worker.web.access import Refused, Visitor
from worker.web.attempts import Attempts
from worker.web.site import Site

log = get_logger(__name__)

T = TypeVar("T")


def visitor_of(site: Site, request: Request) -> Visitor:
    """
    The visitor of a request, by its bearer token.

    Raises:
        Refused: as of `Access.by_bearer`; or this address gave too many wrong tokens.
    """
    return limited(site, request, lambda: site.access.by_bearer(request.headers))


def limited(site: Site, request: Request, look: Callable[[], T]) -> T:
    """
    Return what `look` finds by the request's header. A request without one is no guess.

    Raises:
        Refused: by `look`; or too many wrong tokens came before, then it is not asked.
    """
    if not site.access.asks_for_token or "authorization" not in request.headers:
        return look()
    address, now = address_of(request), time.monotonic()
    if wait_s := site.attempts.wait_s(address, now):
        tell_refusal(site.attempts, address, now)
        raise Refused(429, f"too many wrong tokens; try again in {ceil(wait_s)} s", wait_s)
    try:
        found = look()
    except Refused as exc:
        if exc.status == 401:
            site.attempts.add(address, now)
            log.warning("web.sign_in_failed", address=address)
        raise
    site.attempts.accept(address)
    return found


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""


def tell_refusal(attempts: Attempts, address: str, now: float) -> None:
    """Count a refusal, and log how many there were, once a minute."""
    if refused := attempts.refuse(now):
        log.warning("web.sign_ins_refused", address=address, count=refused)


def headers_of(refusal: Refused) -> dict[str, str]:
    """The headers of the reply to a refused request."""
    if refusal.status == 401:
        return {"www-authenticate": "Bearer"}
    return {"retry-after": str(ceil(refusal.wait_s))} if refusal.wait_s else {}
