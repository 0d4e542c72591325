"""
Two nodes that own one slot by turns and break off at any byte, and callers that are canceled
anywhere. Each reply names what was asked, so a reply at the wrong caller is detected.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import hiredis
from redis.exceptions import RedisError, ResponseError

CALLERS = 30
REFUSALS = ("TRYAGAIN half moved", "CLUSTERDOWN down", "NOREPLICAS too few", "READONLY a replica")
SIZES = (1, 1, 50, 5_000, 70_000)


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(data), data)


class Slot:
    """Who owns the slot now, and how often its nodes break."""

    def __init__(self, seed: int) -> None:
        self.ports: list[int] = []
        self.owner = 0
        self.random = random.Random(seed)
        self.counts: Counter[str] = Counter()


class EchoNode:
    """Answers each command with what it was given, cuts replies, refuses, and gives the slot away."""

    def __init__(self, slot: Slot, number: int) -> None:
        self._slot, self._number = slot, number

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            await self._serve(reader, writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parser, queued, draw = hiredis.Reader(), list[bytes](), self._slot.random
        is_open = [False]
        while data := await reader.read(65_536):
            parser.feed(data)
            while (command := parser.gets()) is not False:
                reply = self._reply(command, queued, is_open)
                if draw.random() < 0.004:
                    self._slot.owner = 1 - self._slot.owner
                    self._slot.counts["moves"] += 1
                if draw.random() < 0.01:
                    self._slot.counts["cuts"] += 1
                    writer.write(reply[: draw.randrange(len(reply) + 1)])
                    writer.close()
                    return
                writer.write(reply)
            await writer.drain()

    def _reply(self, command: list[bytes], queued: list[bytes], is_open: list[bool]) -> bytes:
        name = command[0].upper()
        if name in {b"CLUSTER", b"INFO"}:
            return self._map() if command[1:2] == [b"SLOTS"] else bulk(b"cluster_state:ok\r\n")
        if name not in {b"GET", b"ECHO", b"EVALSHA", b"MULTI", b"EXEC", b"SET"}:
            return b"+OK\r\n"
        if name == b"EXEC" and is_open[0]:
            is_open[0], answers = False, [*queued]
            queued.clear()
            return b"*%d\r\n" % len(answers) + b"".join(answers)
        return self._refusal() or self._answer(command, queued, is_open)

    def _map(self) -> bytes:
        port = self._slot.ports[self._slot.owner]
        return b"*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:%d\r\n" % port

    def _refusal(self) -> bytes:
        slot = self._slot
        if slot.owner != self._number:
            return b"-MOVED 1 127.0.0.1:%d\r\n" % slot.ports[slot.owner]
        if slot.random.random() < 0.01:
            return b"-%s\r\n" % slot.random.choice(REFUSALS).encode()
        return b""

    def _answer(self, command: list[bytes], queued: list[bytes], is_open: list[bool]) -> bytes:
        name = command[0].upper()
        if name == b"MULTI":
            is_open[0] = True
            return b"+OK\r\n"
        answer = b"+OK\r\n" if name == b"SET" else bulk(command[-1])
        if not is_open[0]:
            return answer
        queued.append(answer)
        return b"+QUEUED\r\n"


class _Fuzz:
    """`slot.counts` has right and wrong replies, and canceled and failed calls."""

    def __init__(self, client: Any, slot: Slot) -> None:
        self._client, self._slot, self._asked = client, slot, 0

    @property
    def asks(self) -> list[Callable[[int], Awaitable[bool]]]:
        raise NotImplementedError

    async def run(self, until: Callable[[], bool]) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                group.create_task(self._caller(number, until))

    async def _caller(self, number: int, until: Callable[[], bool]) -> None:
        draw, counts = self._slot.random, self._slot.counts
        while not until():
            ask = draw.choice(self.asks)
            task = asyncio.ensure_future(ask(number))
            if draw.random() < 0.2:
                for _ in range(draw.randrange(12)):
                    await asyncio.sleep(0)
                task.cancel()
            try:
                counts["right" if await task else "WRONG"] += 1
            except asyncio.CancelledError:
                counts["canceled"] += 1
            except (RedisError, OSError):
                counts["failed"] += 1
                await asyncio.sleep(0)

    def _name(self, number: int) -> bytes:
        self._asked += 1
        size = self._slot.random.choice(SIZES)
        return f"{{t}}:{number}:{self._asked}:".encode() + b"x" * size

    async def _script(self, number: int) -> bool:
        name = self._name(number)
        return bool(await self._client.evalsha("a" * 40, 1, "{t}", name) == name)


class OwnerFuzz(_Fuzz):
    """Callers of a client whose pool follows one slot: the queue's on a cluster."""

    @property
    def asks(self) -> list[Callable[[int], Awaitable[bool]]]:
        return [self._get, self._script, self._script, self._pipeline, self._multi]

    async def _get(self, number: int) -> bool:
        name = self._name(number)
        return bool(await self._client.get(name) == name)

    async def _pipeline(self, number: int) -> bool:
        names = [self._name(number) for _ in range(3)]
        async with self._client.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.get(name)
            return bool(await pipe.execute() == names)

    async def _multi(self, number: int) -> bool:
        name = self._name(number)
        async with self._client.pipeline(transaction=True) as pipe:
            pipe.set(name, b"value")
            pipe.get(name)
            return bool(await pipe.execute() == [True, name])


class ClusterFuzz(_Fuzz):
    """Callers of a `ClusterConnection`: the cache's on a cluster."""

    @property
    def asks(self) -> list[Callable[[int], Awaitable[bool]]]:
        return [self._hit, self._hit, self._script, self._many]

    async def _hit(self, number: int) -> bool:
        name = self._name(number)
        return bool(await self._client.node_of("{t}").execute("ECHO", name) == name)

    async def _many(self, number: int) -> bool:
        names = [self._name(number) for _ in range(3)]
        found = await self._client.execute_many([("GET", name) for name in names])
        return all(
            isinstance(one, ResponseError) or one == name
            for one, name in zip(found, names, strict=True)
        )
