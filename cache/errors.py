"""
Defines the errors of the cache, of its connections and of its encoding.

CacheError
├── RedisUnavailable(url, reason)   the server cannot be reached: also a ConnectionError
│   └── RedisRefused                it answers, and refuses: the message says what to change
├── CacheUnavailable                a lease could not be taken; or a write not begin, and
│                                   LETTA_CACHE_CUT_OFF is refuse: also a ConnectionError
├── LeaseHeld(name, left_s)         another process has the lease: also a TimeoutError
├── LeaseLost(name)                 the lease ended before the block did, which was canceled
├── UnsupportedRedisURL             the URL cannot be used here: also a ValueError
├── EmbeddedServerError             embedded:// could not start its server
├── MissingExtra                    a setting needs a package that is absent: also an ImportError
├── InvalidName                     an id, scope, tag, ... is not valid: also a ValueError
├── LoaderTimeout                   a loader passed its hard limit: also a TimeoutError
└── CodecError                      stored bytes cannot be read: also a ValueError
    └── NotEncodable                a value would not come back as given: also a TypeError

Reading through the cache raises only InvalidName and LoaderTimeout: an outage or an
unreadable value is a miss (docs/architecture.md).
"""

from __future__ import annotations


class CacheError(Exception):
    """Base class of every error of this package."""


class RedisUnavailable(CacheError, ConnectionError):
    """The server cannot be reached. Retry later. `reason` says what to check."""

    _verb = "reach"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"cannot {self._verb} {url}: {reason}")
        self.url = url
        self.reason = reason


class RedisRefused(RedisUnavailable):
    """The server answers, but refuses this client. Waiting does not help; `reason` has the remedy."""

    _verb = "use"


class CacheUnavailable(CacheError, ConnectionError):
    """The server cannot be reached, so nothing was begun. Retry later; the message has the remedy."""

    def __init__(
        self,
        problem: str = "the write was not begun",
        remedy: str = "set LETTA_CACHE_CUT_OFF=serve to write without it",
    ) -> None:
        super().__init__(
            f"{problem}, because the cache's server cannot be reached; retry later, or {remedy}"
        )


class LeaseHeld(CacheError, TimeoutError):
    """Another process has the lease. Retry later, or wait longer. `left_s`: when it lapses at the latest."""

    def __init__(self, name: str, left_s: float) -> None:
        super().__init__(
            f"the lease {name!r} is held by another process for up to {left_s:.3g} s unless renewed; "
            "retry later, or pass a longer wait_s"
        )
        self.name = name
        self.left_s = left_s


class LeaseLost(CacheError):
    """The lease ended before the block did, and another may hold it now. Take it again to go on."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"the lease {name!r} was lost: it could not be renewed within its TTL; take it again to go on"
        )
        self.name = name


class UnsupportedRedisURL(CacheError, ValueError):
    """The URL has an unknown form, or cannot be used here. The message says what to set instead."""


class EmbeddedServerError(CacheError):
    """The server of an embedded:// URL did not start. The message says why."""


class MissingExtra(CacheError, ImportError):
    """A setting needs an optional package that is not installed."""

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"needs the {package} package: pip install 'letta-redis[{extra}]'")


class InvalidName(CacheError, ValueError):
    """A name is no text, empty, too long, or contains forbidden characters. Names the argument."""


class LoaderTimeout(CacheError, TimeoutError):
    """The loader passed its hard limit and was canceled."""


class CodecError(CacheError, ValueError):
    """Stored bytes that this version cannot read."""


class NotEncodable(CodecError, TypeError):
    """
    A value would not come back as it was given. The message says which part, and what to pass.

    `problem` is the same without `path`, the part's place in the value.
    """

    def __init__(self, problem: str, path: str | None = None) -> None:
        super().__init__(problem if path is None else f"the value{path} {problem}")
        self.problem = problem
        self.path = path or ""
