"""
Callers with every kind of argument share one connection, are canceled anywhere, and the server
dies at every byte. Each reply names its key, so a reply at the wrong caller is detected.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from redis.exceptions import ResponseError

from cache.connection.multiplexed import MultiplexedConnection
from cache.connection.protocol import Away
from cache.errors import NotEncodable
from tests.support.fault_proxy import FaultProxy

CALLERS = 40
# Each text is sent with a name in front, which identifies its reply.
TEXTS = ["", "x", "ü€😀", "\r\n$5\r\nhello\r\n", "\0\x01\x7f", "y" * 3000, "z" * 70_000]
UNSENDABLE: list[Any] = ["\ud800", "a\udfff", None, {"a": 1}, ["x"], object(), ("t",), {1}]
_WINDOW = "m" * 16


def _taken(data: bytes | memoryview, start: int, end: int) -> bytes:
    return bytes(data[start:end])


class ConnectionFuzz:
    """`counts` has right and wrong replies, and refused, canceled and failed calls."""

    def __init__(self, connection: MultiplexedConnection, prefix: str, seed: int) -> None:
        self._connection = connection
        self._prefix = prefix
        self._random = random.Random(seed)
        self._asked = 0
        self.counts: Counter[str] = Counter()

    async def prepare(self) -> None:
        """Write the keys that the callers read. Each value contains its key."""
        for number in range(CALLERS):
            key = self._key(number)
            await self._connection.execute("SET", key, key * 50)
        await self._connection.execute("SET", f"{self._prefix}w", _WINDOW)

    async def run(self, until: Callable[[], bool]) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._caller(number, until))

    async def _caller(self, number: int, until: Callable[[], bool]) -> None:
        while not until():
            ask = self._random.choice(
                (
                    self._echo,
                    self._echo,
                    self._hit,
                    self._script,
                    self._many,
                    self._odd,
                    self._refused,
                )
            )
            task = asyncio.ensure_future(ask(number))
            if self._random.random() < 0.2:
                # Cancel at whichever await it has reached.
                for _ in range(self._random.randrange(4)):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                self.counts["right" if await task else "WRONG"] += 1
            except asyncio.CancelledError:
                self.counts["canceled"] += 1
            except NotEncodable:
                self.counts["not encodable"] += 1
            except Away:
                self.counts["away"] += 1
                await asyncio.sleep(0)

    def _key(self, number: int) -> str:
        return f"{self._prefix}{number:04}"

    def _name(self, number: int) -> str:
        self._asked += 1
        return f"{number}:{self._asked}:"

    async def _echo(self, number: int) -> bool:
        text = self._name(number) + self._random.choice(TEXTS)
        given = self._random.choice((text, text.encode()))
        return bool(await self._connection.execute("ECHO", given) == text.encode())

    async def _hit(self, number: int) -> bool:
        window, key = f"{self._prefix}w", self._key(number)
        reply = await self._connection.fetch(("MGET", window, key), _taken)
        if isinstance(reply, ResponseError):
            return False
        return list(reply) == [_WINDOW.encode(), (key * 50).encode()]

    async def _script(self, number: int) -> bool:
        name = self._name(number)
        reply = await self._connection.eval("return {ARGV[1], {ARGV[2]}, 7}", 0, name, -1.5)
        return bool(reply == [name.encode(), [b"-1.5"], 7])

    async def _many(self, number: int) -> bool:
        names = [self._name(number) for _ in range(self._random.randrange(1, 5))]
        commands: list[tuple[Any, ...]] = [("ECHO", name) for name in names]
        odd = self._random.random() < 0.3
        if odd:
            place = self._random.randrange(len(names) + 1)
            commands.insert(place, ("ECHO", self._random.choice(UNSENDABLE)))
        replies = await self._connection.execute_many(commands)
        return not odd and replies == [name.encode() for name in names]

    async def _odd(self, number: int) -> bool:
        await self._connection.execute("ECHO", self._name(number), self._random.choice(UNSENDABLE))
        return False

    async def _refused(self, number: int) -> bool:
        name = f"NO-SUCH-{number}-{self._asked}"
        try:
            await self._connection.execute(name)
        except ResponseError as exc:
            return name in str(exc)
        return False


async def break_often(proxy: FaultProxy, seed: int) -> None:
    """Cut the connection after any number of reply bytes, small ones as often as large ones."""
    draw = random.Random(seed)
    try:
        while True:
            await proxy.cut_after(int(10 ** draw.uniform(1, 7.3))).wait()
    finally:
        proxy.cut_never()
