"""
Explains why a server refused: what happened, and what to do about it. Pure.

redis-py passes on the server's own text, and its class of error differs between
releases, so an error is recognized by its text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_MAX_CHARS = 200
_SILENCE = {"", "Timeout connecting to server"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a server does not serve. Waiting does not end a `lasting` one."""

    reason: str
    remedy: str
    lasting: bool = False

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


_KNOWN = [
    (
        r"No master found.*(NOAUTH|Authentication required|HELLO must be called)",
        "its Sentinels require a password",
        "give it in LETTA_REDIS_SENTINEL_PASSWORD",
        True,
    ),
    (
        r"No master found.*(WRONGPASS|[Ii]nvalid [Uu]sername.*[Pp]assword|invalid password)",
        "its Sentinels refuse the user name or the password",
        "correct LETTA_REDIS_SENTINEL_USERNAME and LETTA_REDIS_SENTINEL_PASSWORD",
        True,
    ),
    (
        r"NOAUTH|Authentication required|HELLO must be called",
        "it requires a password",
        "give it in the URL or in LETTA_REDIS_PASSWORD (the cache's: LETTA_CACHE_REDIS_PASSWORD)",
        True,
    ),
    (
        r"WRONGPASS|invalid username-password|Invalid Username or Password|invalid password",
        "it refuses the user name or the password",
        "correct those of the URL, or LETTA_REDIS_USERNAME and LETTA_REDIS_PASSWORD (LETTA_CACHE_REDIS_...)",
        True,
    ),
    (
        r"without any password configured|no password is set",
        "it has no password, but one was sent",
        "remove it from the URL and from LETTA_REDIS_PASSWORD (LETTA_CACHE_...), or set one on the server",
        True,
    ),
    (
        r"WRONG_VERSION_NUMBER|wrong version number|RECORD_LAYER_FAILURE|record layer failure",
        "it does not speak TLS",
        "use redis:// instead of rediss://",
        True,
    ),
    (
        r"CERTIFICATE_VERIFY_FAILED|certificate verify failed",
        "its certificate is not trusted, or is for another host name",
        "set LETTA_REDIS_CA_FILE to its CA, and use the name in the certificate",
        True,
    ),
    (
        r"CERTIFICATE_REQUIRED|certificate required|HANDSHAKE_FAILURE",
        "it requires a client certificate",
        "set LETTA_REDIS_CERT_FILE and LETTA_REDIS_KEY_FILE",
        True,
    ),
    (
        r"[Pp]rotocol [Ee]rror",
        "what answers there is neither Redis nor Valkey",
        "correct the host and the port",
        True,
    ),
    (
        r"cluster support disabled|Cluster mode is not enabled",
        "it is not a cluster",
        "use redis:// instead of redis+cluster://",
        True,
    ),
    (
        r"MOVED \d+|CROSSSLOT|don't hash to the same slot|cluster_enabled:1",
        "it is a node of a cluster",
        "use redis+cluster:// instead of redis://",
        True,
    ),
    (
        r"unknown command .SENTINEL",
        "it is not a Sentinel",
        "use redis:// for the server itself, or the port of its Sentinels",
        True,
    ),
    (
        r"unknown command .(EVAL|EVALSHA|TIME|ZRANGE)\b",
        "it is a Sentinel, or another server that runs no scripts",
        "name a Sentinel as redis+sentinel://host:port/service",
        True,
    ),
    (
        r"DB index is out of range|SELECT is not allowed in cluster",
        "it has no database of this number",
        "end the URL with /0",
        True,
    ),
    (
        r"DENIED|protected mode",
        "it is in protected mode and serves its own machine only",
        "give the server a password, and set it in LETTA_REDIS_PASSWORD",
        True,
    ),
    (
        r"LOADING|is loading the dataset",
        "it is loading its data",
        "try again when it has finished",
        False,
    ),
    (
        r"READONLY|read only replica|previous master is now",
        "it is a replica and refuses writes",
        "use the URL of its master, or redis+sentinel://",
        False,
    ),
    (
        r"MASTERDOWN|Link with MASTER is down",
        "it is a replica without a master",
        "use the URL of the master, or redis+sentinel://",
        False,
    ),
    (
        r"MISCONF|unable to persist to disk",
        "it cannot write its data to disk and refuses writes",
        "free its disk, and see its log",
        False,
    ),
    (
        r"OOM |used memory > 'maxmemory'",
        "it is out of memory",
        "raise its maxmemory, or delete what it need not keep",
        False,
    ),
    (
        r"max number of clients",
        "it accepts no more connections",
        "raise its maxclients, or lower LETTA_REDIS_MAX_CONNECTIONS",
        False,
    ),
    (
        r"BUSY |busy running a script",
        "a script keeps it busy",
        "wait, or end the script with SCRIPT KILL",
        False,
    ),
    (
        r"closed by server|[Cc]onnection reset|Connection lost|UNEXPECTED_EOF|EOF occurred",
        "it closed the connection",
        "if it expects TLS, use rediss://; if it does not, redis://",
        False,
    ),
]
_RULES = [(re.compile(pattern), Refusal(*rest)) for pattern, *rest in _KNOWN]  # type: ignore[arg-type]
# What the queue's check at the start found (worker/queue/rights.py).
_LACKING = re.compile(r"this service lacks ([^:]+)")
_NO_RIGHTS = re.compile(
    r"NOPERM|no permissions? |No permissions|can't access at least one|may not run"
)


def refusal_of(exc: BaseException) -> Refusal | None:
    """Recognize an error of redis-py; None for any other outage, such as a refused connection."""
    text = _text(exc)
    if getattr(exc, "is_sent_again", False) and text.startswith("MOVED "):
        return None  # a client of the cluster asks the slot's new owner
    if _NO_RIGHTS.search(text):
        remedy = "allow it by ACL: SECURITY.md lists what is needed"
        return Refusal(f"its user lacks a right ({_cut(text, 120)})", remedy, lasting=True)
    if lacking := _LACKING.match(text):
        remedy = "use a service that has it: docs/operations.md lists some"
        return Refusal(f"it lacks {lacking[1]}, which the queue needs", remedy, lasting=True)
    return next((refusal for pattern, refusal in _RULES if pattern.search(text)), None)


def is_denied(text: str) -> bool:
    """Whether this is what a server says when a user may not run a command."""
    return _NO_RIGHTS.search(text) is not None


def explain(exc: BaseException) -> str:
    """An outage in one line: a known refusal with its remedy, else at most 200 characters."""
    known = refusal_of(exc)
    return str(known) if known is not None else _cut(_text(exc), _MAX_CHARS)


def reason_of(exc: BaseException, url: str) -> str:
    """Why the server of this URL does not serve, and what to check."""
    if refusal_of(exc) is not None:
        return explain(exc)
    is_silent = str(exc) in _SILENCE or isinstance(exc, TimeoutError)
    text = "no answer in time" if is_silent else explain(exc)
    if url.startswith("rediss"):
        text += "; if it does not speak TLS, use redis:// instead of rediss://"
    return (
        f"{text.rstrip('.')}; check that the server runs and that LETTA_REDIS_URL or "
        "LETTA_CACHE_REDIS_URL names it"
    )


def _text(exc: BaseException) -> str:
    """A timeout has no text, so its class is named."""
    return " ".join(str(exc).split()) or type(exc).__name__


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[:limit] + "..."
