"""
What the cache and its ground floor raise.

CacheError
├── RedisUnavailable(url, reason)   the server cannot be reached: also a ConnectionError
├── UnsupportedRedisURL             the URL's form does not fit its use: also a ValueError
├── EmbeddedServerError             embedded:// could not start its server
├── MissingExtra                    a setting asks for a package that is absent: also an ImportError
├── InvalidName                     an id, scope, tag, ... that cannot be one: also a ValueError
├── LoaderTimeout                   a loader passed its hard limit: also a TimeoutError
└── CodecError                      bytes that are not ours: also a ValueError
    └── NotEncodable                a value that has no safe encoding: also a TypeError

Reading through the cache raises none of them but InvalidName and the loader's own
limit: an outage or a broken value is a miss (docs/architecture.md).
"""

from __future__ import annotations


class CacheError(Exception):
    """Root of everything this package raises."""


class RedisUnavailable(CacheError, ConnectionError):
    """The server cannot be reached now. Trying again later may succeed."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(
            f"cannot reach {url}: {reason}; check that the server runs and LETTA_REDIS_URL names it"
        )
        self.url = url
        self.reason = reason


class UnsupportedRedisURL(CacheError, ValueError):
    """The URL is well formed but cannot serve here; the message says what can."""


class EmbeddedServerError(CacheError):
    """The private server of an embedded:// URL did not start; the message says why."""


class MissingExtra(CacheError, ImportError):
    """A setting asks for an optional package that is not installed."""

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"needs the {package} package: pip install 'letta-redis[{extra}]'")


class InvalidName(CacheError, ValueError):
    """A name is not text, empty, too long, or has characters that it may not; it names the argument."""


class LoaderTimeout(CacheError, TimeoutError):
    """The loader passed its hard limit and was cancelled."""


class CodecError(CacheError, ValueError):
    """Bytes that this version cannot read."""


class NotEncodable(CodecError, TypeError):
    """A value that has no safe encoding; the message names its type."""
