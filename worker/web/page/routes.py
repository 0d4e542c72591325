"""Turns pages, sign-in and actions into HTTP, with the same errors as the API."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from math import ceil
from typing import Any
from urllib.parse import quote, unquote

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from cache.logs import get_logger
from worker.errors import InvalidArgument, WorkerError
from worker.web.access import Refused
from worker.web.api.actions import ACTIONS
from worker.web.api.performing import Action, perform, require_operator
from worker.web.api.routes import LIMIT_S, decode, problem_of
from worker.web.attempts import Attempts
from worker.web.bearer import address_of, headers_of, limited, tell_refusal
from worker.web.page import many
from worker.web.page.forms import cookie, form_of, is_same, local, with_cookie
from worker.web.page.pages import PAGES, Page
from worker.web.page.rendering import SECURITY_HEADERS, environment, reply, static_file
from worker.web.page.sessions import SESSION_S, Session, SignedSessions
from worker.web.site import Site

log = get_logger(__name__)

_FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
_MOST_SAID = 400
_SAID_S = 60

Answer = Callable[[Request, Session], Awaitable[Response]]
Handler = Callable[[Request], Awaitable[Response]]


def page_routes(site: Site) -> list[Route]:
    """Build the routes of all pages, of signing in and out, of actions and static files."""
    desk = _Desk(site)
    found = [Route(page.path, desk.page(page), methods=["GET"]) for page in PAGES]
    found += [
        Route(f"/act/{action.name}", desk.action(action), methods=["POST"])
        for action in ACTIONS.values()
    ]
    found += [
        Route("/change", desk.answering(desk.change), methods=["POST"]),
        Route("/sign-in", desk.sign_in, methods=["GET", "POST"]),
        Route("/sign-out", desk.answering(desk.sign_out), methods=["POST"]),
    ]
    return [
        *found,
        *(Route(f"/static/{name}", _static(name, kind)) for name, kind in _FILES.items()),
    ]


class _Desk:
    """Answers requests for one site."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._sessions = SignedSessions(site.access)
        self._attempts = Attempts()
        self._templates = environment()

    def page(self, page: Page) -> Handler:
        async def answer(request: Request, session: Session) -> Response:
            # A form sends its empty fields, too.
            pairs = [pair for pair in request.query_params.multi_items() if pair[1]]
            found = await page.run(self._site, decode(pairs, page.query))
            return self._show(request, page.template, session=session, **found)

        return self.answering(answer)

    def action(self, action: Action) -> Handler:
        async def answer(request: Request, session: Session) -> Response:
            require_operator(session.visitor)
            fields = await form_of(request)
            session.require_form(fields.pop("form_token", ""))
            back = local(fields.pop("back", ""))
            target = decode(list(fields.items()), action.target)
            done = await perform(self._site, session.visitor, action, target)
            return _said(_to(back), request, f"{action.label}: {done.message}")

        return self.answering(answer)

    async def change(self, request: Request, session: Session) -> Response:
        require_operator(session.visitor)
        fields = await form_of(request)
        session.require_form(fields.pop("form_token", ""))
        query = decode(list(fields.items()), many.ChangeQuery)
        found = await many.change(self._site, session.visitor, query)
        return self._show(request, "change", session=session, **found)

    def answering(self, answer: Answer) -> Handler:
        """Answer within the session of the request, or say what is wrong."""

        async def handler(request: Request) -> Response:
            session = None
            try:
                async with asyncio.timeout(LIMIT_S):
                    session = limited(self._site, request, lambda: self._session_of(request))
                    if session is None:
                        return _to_sign_in(request)
                    return await answer(request, session)
            except (Refused, WorkerError, msgspec.MsgspecError, TimeoutError) as exc:
                status, _, message = problem_of(exc)
                shown = self._show(
                    request, "error", status=status, session=session, message=message
                )
                if isinstance(exc, Refused):
                    shown.headers.update(headers_of(exc))
                return shown

        return handler

    def _session_of(self, request: Request) -> Session | None:
        return self._sessions.find(request.headers, cookie(request, "session"))

    async def sign_in(self, request: Request) -> Response:
        if not self._site.access.asks_for_token:
            return _to("/")
        try:
            fields = await form_of(request) if request.method == "POST" else {}
        except (Refused, InvalidArgument) as exc:
            status, _, message = problem_of(exc)
            return self._show(request, "error", status=status, message=message)
        back = local(fields.get("back") or request.query_params.get("back", ""))
        wrong, wait_s = "", 0.0
        if fields:
            address, now = address_of(request), time.monotonic()
            # Both parts of this proof come from the form's own page.
            if not is_same(cookie(request, "form"), fields.get("form_token", "")):
                wrong = "This form was too old, or your browser keeps no cookies. Try again."
            elif wait_s := self._attempts.wait_s(address, now):
                wrong = f"Too many wrong tokens. Try again in {ceil(wait_s)} s."
                tell_refusal(self._attempts, address, now)
            elif started := self._sessions.start(fields.get("token", ""), fields.get("name", "")):
                return with_cookie(_to(back), request, "session", started, SESSION_S)
            else:
                wrong = "This is neither LETTA_WEB_TOKEN nor LETTA_WEB_READ_TOKEN."
                self._attempts.add(address, now)
                log.warning("web.sign_in_failed", address=address)
        return self._sign_in_form(request, back, fields.get("name", ""), wrong, wait_s)

    def _sign_in_form(
        self, request: Request, back: str, name: str, wrong: str, wait_s: float
    ) -> Response:
        proof = secrets.token_hex(16)
        status = 429 if wait_s else 403 if wrong else 200
        shown = self._show(
            request, "sign_in", status=status, back=back, form_token=proof, name=name, wrong=wrong
        )
        if wait_s:
            shown.headers["retry-after"] = str(ceil(wait_s))
        return with_cookie(shown, request, "form", proof, SESSION_S)

    async def sign_out(self, request: Request, session: Session) -> Response:
        fields = await form_of(request)
        session.require_form(fields.get("form_token", ""))
        return with_cookie(_to("/sign-in"), request, "session", "", 0)

    def _show(
        self,
        request: Request,
        template: str,
        *,
        status: int = 200,
        session: Session | None = None,
        **context: Any,
    ) -> Response:
        said = unquote(cookie(request, "said")) if session is not None else ""
        text = self._templates.get_template(f"{template}.html").render(
            {
                "actions": ACTIONS,
                "form_token": session.form_token if session else "",
                "here": _here(request),
                "may_act": session is not None and session.visitor.may_act,
                "pages": PAGES,
                "path": request.url.path,
                "said": said,
                "signs_in": self._site.access.asks_for_token
                and "authorization" not in request.headers,
                "visitor": session.visitor if session else None,
                **context,
            }
        )
        shown = reply(text, status)
        return with_cookie(shown, request, "said", "", 0) if said else shown


def _static(name: str, kind: str) -> Handler:
    body = static_file(name)
    tag = f'"{sha256(body).hexdigest()[:32]}"'

    async def handler(request: Request) -> Response:
        headers = {**SECURITY_HEADERS, "etag": tag, "cache-control": "no-cache"}
        if request.headers.get("if-none-match") == tag:
            return Response(None, 304, headers)
        return Response(body, 200, headers, media_type=kind)

    return handler


def _to(path: str) -> Response:
    return RedirectResponse(path, 303, {**SECURITY_HEADERS, "cache-control": "no-store"})


def _to_sign_in(request: Request) -> Response:
    here = _here(request) if request.method == "GET" else "/"
    return _to("/sign-in" if here == "/" else f"/sign-in?back={quote(here, safe='')}")


def _here(request: Request) -> str:
    return request.url.path + (f"?{request.url.query}" if request.url.query else "")


def _said(shown: Response, request: Request, text: str) -> Response:
    """Let the next page say what became of an action."""
    return with_cookie(shown, request, "said", quote(text[:_MOST_SAID], errors="replace"), _SAID_S)
