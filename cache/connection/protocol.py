"""What the cache needs of a connection, and what happens when there is none."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from redis.exceptions import ConnectionError as RedisConnectionError

# What a caller makes of the last string of a reply: it lies in a buffer, from here to there, and
# is gone when the call returns.
Take = Callable[[bytes | memoryview, int, int], Any]


class Away(RedisConnectionError):  # type: ignore[misc]
    """The server cannot be reached, or did not answer in time."""


class Ended(Away):
    """The connection ended under the call: it may have run, and can be sent once more."""


class Connection(Protocol):
    """What the cache needs of a connection."""

    @property
    def desynchronized(self) -> int:
        """Connections ended because calls and replies might not match."""
        ...

    def incarnation_of(self, key: str) -> bytes:
        """8 bytes that differ between two runs of the server that holds a key."""
        ...

    async def connect(self) -> None: ...

    async def execute(self, *args: Any) -> Any: ...

    async def execute_many(self, commands: Sequence[Sequence[Any]]) -> list[Any]: ...

    async def evalsha(self, sha: str, count: int, *args: Any) -> Any: ...

    async def eval(self, source: str, count: int, *args: Any) -> Any: ...

    async def nodes(self) -> Sequence[Connection]:
        """Each server with keys, for commands that name none."""
        ...

    async def has_ended(self) -> bool:
        """Whether the server is known to be no more; False when that cannot be told."""
        ...

    async def close(self) -> None: ...


class SingleServerConnection(Connection, Protocol):
    """A wire to a server that has all keys."""

    def fetch(self, args: tuple[Any, ...], take: Take) -> Awaitable[Any]:
        """One command's reply, its last string as `take` makes it; a refusal is returned."""
        ...
