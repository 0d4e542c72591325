"""
Recognizes a visitor: by a signed cookie, by the token that a reverse proxy adds, or on loopback.

The cookie never holds the token. A key that is derived from the token signs it, so a changed
token ends every session, and all web processes with the same token accept it. A form carries
a proof of its own, which another site can neither read nor make.
"""

from __future__ import annotations

import hmac
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.web.access import Access, Refused, Role, Visitor, clean_name, require_loopback

# A working day. Then the token is asked for again.
SESSION_S = 12 * 3600
_MOST_COOKIE = 1024


@dataclass(frozen=True, slots=True)
class Session:
    """Who asks, and the proof that the forms of this session carry."""

    visitor: Visitor
    form_token: str = field(repr=False)

    def require_form(self, given: str) -> None:
        """
        Raises:
            Refused: the form is not one that this session was given.
        """
        if not hmac.compare_digest(given.encode("utf-8", "replace"), self.form_token.encode()):
            raise Refused(403, "this form is too old: go back, load the page again, and try again")


class SignedSessions:
    """Starts sessions and finds them in requests. They are kept nowhere."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._keys = {
            role: _sign(token.encode(), "session")
            for role, token in ((Role.OPERATOR, access.token), (Role.READER, access.read_token))
            if token is not None
        }
        # Without a token, forms last as long as this process.
        self._open_key = secrets.token_bytes(32)

    def start(self, token: str, name: str) -> str | None:
        """The cookie of a new session; None for a wrong token."""
        role = self._access.role_of(token)
        if role is None:
            return None
        named = clean_name(name).encode().hex()
        payload = f"{role.value}.{int(time.time()) + SESSION_S}.{secrets.token_hex(16)}.{named}"
        return f"{payload}.{_sign(self._keys[role], payload).hex()}"

    def find(self, headers: Mapping[str, str], cookie: str) -> Session | None:
        """
        The session of a request; None where the visitor has to sign in.

        Raises:
            Refused: the token of the `Authorization` header is wrong; or there is no token, and
                the request does not name this machine.
        """
        if not self._access.asks_for_token:
            require_loopback(headers)
            return _named(self._access.visitor(Role.OPERATOR, headers), self._open_key)
        if "authorization" in headers:
            visitor = self._access.by_bearer(headers)
            return _named(visitor, self._keys[visitor.role])
        return self._of_cookie(headers, cookie)

    def _of_cookie(self, headers: Mapping[str, str], cookie: str) -> Session | None:
        payload, _, signature = cookie.rpartition(".")
        parts = payload.split(".")
        if len(cookie) > _MOST_COOKIE or len(parts) != 4 or parts[0] not in list(Role):
            return None
        role = Role(parts[0])
        key = self._keys.get(role)
        if key is None or not _is_same(_sign(key, payload).hex(), signature):
            return None
        # Signed by us, so it has the form that we gave it.
        _, ends, nonce, named = parts
        if int(ends) <= time.time():
            return None
        name = bytes.fromhex(named).decode()
        return _session(self._access.visitor(role, headers, name), key, nonce)


def _named(visitor: Visitor, key: bytes) -> Session:
    """A session without a cookie: its forms are those of the user that the proxy names."""
    return _session(visitor, key, f"as {visitor.actor}")


def _session(visitor: Visitor, key: bytes, nonce: str) -> Session:
    return Session(visitor, _sign(key, f"form {nonce}").hex())


def _sign(key: bytes, text: str) -> bytes:
    return hmac.digest(key, f"letta-redis page: {text}".encode("utf-8", "replace"), "sha256")


def _is_same(expected: str, given: str) -> bool:
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace"))
