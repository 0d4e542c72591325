"""Defines the interface of a connection, and the errors when there is none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError

# Decodes the last string of a reply, at buffer[start:end]. The buffer is reused after it returns.
Decode = Callable[[bytes | memoryview, int, int], Any]
# After so long without a byte, a server among several may be stopped: others are asked whether
# another one serves in its place.
SILENT_S = 0.5


class Away(RedisConnectionError):  # type: ignore[misc]
    """The server cannot be reached, or did not answer in time."""


class Ended(Away):
    """The connection ended during the call. The command may have run; sending it again may help."""

    is_sent_again = True


class Elsewhere(Exception):
    """The server does not serve the keys of this connection any more, so it must end."""


class Connection(Protocol):
    """A connection to one server or to a cluster."""

    # Whether keys lie on several servers: what is sent together has keys of one slot only.
    spread: bool

    @property
    def desynchronized(self) -> int:
        """Connections ended because calls and replies might not match."""
        ...

    def incarnation_of(self, key: str) -> bytes:
        """8 bytes that identify the run of the server that holds a key: a restart changes
        them, and so does becoming the master."""
        ...

    def doubt(self, key: str) -> None:
        """A value names another run than `incarnation_of`: ask for the run with the next command."""
        ...

    async def connect(self) -> None: ...

    async def execute(self, *args: Any) -> Any: ...

    def node_of(self, key: str) -> Connection:
        """The connection to fetch a key from: to its node on a cluster, otherwise this one."""
        ...

    def fetch(self, args: tuple[Any, ...], decode: Decode) -> Awaitable[Any]:
        """The reply to one command: two strings, the last one decoded. Errors may be returned."""
        ...

    async def execute_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]: ...

    async def evalsha(self, sha: str, count: int, *args: Any) -> Any: ...

    async def eval(self, source: str, count: int, *args: Any) -> Any: ...

    async def nodes(self) -> Sequence[Connection]:
        """A connection to each server that holds keys, for commands that name no key."""
        ...

    async def close(self) -> None: ...
