"""
Reads the URL of a webhook into what will be connected to and sent. Pure.

Path and query stay byte for byte as given, whatever their escapes; a character that
HTTP cannot carry is escaped as UTF-8. A host in Unicode becomes its ASCII form
(IDNA 2008). A host that no resolver could look up is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address
from urllib.parse import quote

MAX_URL = 2048
_PORTS = {"http": 80, "https": 443}
_URL = re.compile(r"(https?)://([^/?#\\]*)((?:[/?][^#]*)?)(#.*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[^\]]*\]|[^:\[\]]*)(?::([0-9]{0,5}))?")
_LABELS = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?")
# The last label of a number is never a top-level domain.
_NUMBER = re.compile(r"[0-9]+|0[xX][0-9A-Fa-f]*")
_NOT_SENT = re.compile(r"[^\x21-\x7e]+")


class BadURL(ValueError):
    """What is wrong with a URL, to follow "it"."""


@dataclass(frozen=True, slots=True)
class WebhookURL:
    """`host` has no brackets; `target` is path and query as the request line has them."""

    scheme: str
    host: str
    port: int
    target: str
    text: str

    @property
    def authority(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return name if self.port == _PORTS[self.scheme] else f"{name}:{self.port}"

    @property
    def server(self) -> str:
        """`host:port` in one spelling."""
        return f"{self.host.lower().rstrip('.')}:{self.port}"


# Few endpoints get most webhooks.
@lru_cache(maxsize=1024)
def read_url(url: str) -> WebhookURL:
    """
    Read an absolute http(s) URL of printable text.

    Raises:
        BadURL: it cannot receive a webhook; the message says why.
    """
    found = _URL.fullmatch(url)
    if found is None:
        raise BadURL("must begin with http:// or https:// and name a host")
    scheme, authority, rest, fragment = found.groups()
    if "@" in authority:
        raise BadURL("must not carry a user or password")
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None or not parts[1]:
        raise BadURL("must begin with http:// or https:// and name a host")
    scheme = scheme.lower()
    port = int(parts[2]) if parts[2] else _PORTS[scheme]
    if not 1 <= port <= 65_535:
        raise BadURL(f"has the port {port}, which cannot be connected to")
    target = _NOT_SENT.sub(lambda text: quote(text[0], safe=""), rest)
    if not target.startswith("/"):
        target = f"/{target}"
    made = WebhookURL(scheme, _host(parts[1]), port, target, "")
    text = f"{scheme}://{made.authority}{target}{fragment or ''}"
    if len(text) > MAX_URL:
        raise BadURL(f"must have at most {MAX_URL} characters with its escapes, not {len(text)}")
    return WebhookURL(scheme, made.host, port, target, text)


def _host(host: str) -> str:
    if host.startswith("["):
        try:
            address = IPv6Address(host[1:-1])
        except ValueError:
            raise BadURL(f"names the host {host!r}, which is no IPv6 address") from None
        if address.scope_id is not None:
            raise BadURL("names an address with a zone, which means nothing elsewhere")
        return str(address)
    host = ascii_host(host)
    if not _LABELS.fullmatch(host) or len(host.rstrip(".")) > 253:
        raise BadURL(f"names the host {host[:100]!r}, which no resolver can look up")
    if _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]) and not _is_ipv4(host.rstrip(".")):
        raise BadURL(f"names the host {host[:100]!r}, which is neither a name nor an address")
    return host


def ascii_host(host: str) -> str:
    """
    Return a name in ASCII, as it is looked up.

    Raises:
        BadURL: IDNA 2008 does not allow it.
    """
    if host.isascii():
        return host
    # Its tables take long to import, and few hosts need them.
    import idna

    try:
        return idna.encode(host, uts46=True).decode()
    except idna.IDNAError as exc:
        raise BadURL(
            f"names the host {host[:100]!r}, which IDNA 2008 does not allow: {exc}"
        ) from None


def _is_ipv4(host: str) -> bool:
    """Whether the C library reads it as an address: up to four numbers, each in any base."""
    try:
        numbers = [_number(part) for part in host.split(".")]
    except ValueError:
        return False
    return (
        len(numbers) <= 4
        and all(number < 256 for number in numbers[:-1])
        and numbers[-1] < 256 ** (5 - len(numbers))
    )


def _number(text: str) -> int:
    if text[:2].lower() == "0x":
        return int(text[2:], 16)
    return int(text, 8 if text.startswith("0") else 10)
