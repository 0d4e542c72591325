"""
Decides who may read and who may act, by the headers of a request. Pure.

Without any token the server listens on loopback only. Then it answers only to a loopback
name: a foreign page whose own name resolves to 127.0.0.1 would otherwise reach it.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from worker.web.address import is_loopback

_MOST_NAME = 64


class Role(StrEnum):
    """What a visitor may do. Operators may read, too."""

    READER = "reader"
    OPERATOR = "operator"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Who asks. `actor` is the name that the audit trail shows."""

    role: Role
    actor: str

    @property
    def may_act(self) -> bool:
        return self.role is Role.OPERATOR


class Refused(Exception):
    """
    The request is refused; `status` says why: 401 without a valid token, 403 by its name.

    wait_s: until it may be tried again, after too many wrong tokens (429).
    """

    def __init__(self, status: int, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.status = status
        self.wait_s = wait_s


@dataclass(frozen=True, slots=True)
class Access:
    """The tokens, and the header in which a reverse proxy names the user."""

    token: str | None = field(default=None, repr=False)
    read_token: str | None = field(default=None, repr=False)
    user_header: str | None = None

    @property
    def asks_for_token(self) -> bool:
        return self.token is not None or self.read_token is not None

    def by_bearer(self, headers: Mapping[str, str]) -> Visitor:
        """
        The visitor of a request that carries its token as `Authorization: Bearer`.

        Raises:
            Refused: no token or a wrong one; or there is none, and the host is not loopback.
        """
        if not self.asks_for_token:
            require_loopback(headers)
            return self.visitor(Role.OPERATOR, headers)
        scheme, _, given = headers.get("authorization", "").partition(" ")
        role = self.role_of(given) if scheme.lower() == "bearer" else None
        if role is None:
            raise Refused(401, "give LETTA_WEB_TOKEN or LETTA_WEB_READ_TOKEN as a bearer token")
        return self.visitor(role, headers)

    def role_of(self, given: str) -> Role | None:
        """The role that a token gives; None for a wrong one."""
        found = None
        for expected, role in ((self.read_token, Role.READER), (self.token, Role.OPERATOR)):
            if expected is not None and _same(given, expected):
                found = role
        return found

    def visitor(self, role: Role, headers: Mapping[str, str], name: str = "") -> Visitor:
        """The visitor under the name that the proxy gives, else under their own, else the role's."""
        wanted = (self.user_header or "").lower()
        named = [value for key, value in headers.items() if wanted and key.lower() == wanted]
        # Given twice, one of them is the client's own: the proxy has added to it, not replaced it.
        proxied = named[0] if len(named) == 1 else ""
        return Visitor(role, clean_name(proxied) or clean_name(name) or role.value)


def require_loopback(headers: Mapping[str, str]) -> None:
    """
    Raises:
        Refused: the request names a host that is not loopback.
    """
    host = headers.get("host", "")
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    if not is_loopback(name.strip("[]")):
        raise Refused(
            403, "without LETTA_WEB_TOKEN, ask for 127.0.0.1 or localhost, not for another name"
        )


def clean_name(text: str) -> str:
    """A name of one line."""
    return "".join(char for char in text if char.isprintable())[:_MOST_NAME].strip()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())
