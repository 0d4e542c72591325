"""
A TCP proxy in front of a server, with faults on request.

cut_replies(n): the next n commands that contain `marker` reach the server and
    run, but the client's connection is closed instead of the reply.
cut_after(n): after n more bytes of replies, every connection is closed. cut_never() takes it back.
reset(): every connection is closed now.
hold() / release(): nothing passes in either direction.
detain(): what open connections send waits for the event that is returned; new ones pass.
refuse: new connections are closed at once.
leave(): stop listening, so that the kernel refuses connections.
swallow(): open connections stay open, but nothing passes.
lead_to(target): new connections go to another server; open ones stay.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class FaultProxy:
    def __init__(self, target: str) -> None:
        self._target = target
        self._open = asyncio.Event()
        self._open.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._live = asyncio.Event()
        self._gate = asyncio.Event()
        self._gate.set()
        self._cuts = 0
        self._marker = b""
        self.cuts_made = 0
        self._bytes_left: int | None = None
        self._cut = asyncio.Event()
        self.refuse = False
        self.port = 0
        self.server: asyncio.Server | None = None

    def cut_replies(self, count: int, marker: bytes = b"EVALSHA") -> None:
        self._cuts, self._marker = count, marker

    def cut_after(self, size: int) -> asyncio.Event:
        """Return an event that is set when the connections are cut."""
        self._bytes_left = size
        self._cut = asyncio.Event()
        return self._cut

    def cut_never(self) -> None:
        self._bytes_left = None

    def lead_to(self, target: str) -> None:
        self._target = target

    def hold(self) -> None:
        self._open.clear()

    def detain(self) -> asyncio.Event:
        gate, self._gate = self._gate, asyncio.Event()
        self._gate.set()
        gate.clear()
        return gate

    def release(self) -> None:
        self._open.set()

    def reset(self) -> None:
        for writer in list(self._writers):
            writer.close()

    def swallow(self) -> None:
        self._live.set()
        self._live = asyncio.Event()

    def leave(self) -> None:
        assert self.server is not None
        self.server.close()
        self.reset()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.close()
            return
        try:
            far_reader, far_writer = await self._connect()
        except OSError:
            writer.close()
            return
        self._writers |= {writer, far_writer}
        doomed = asyncio.Event()
        for coroutine in (
            self._requests(reader, far_writer, doomed, self._live, self._gate),
            self._replies(far_reader, writer, doomed),
        ):
            task = asyncio.create_task(coroutine)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._target.isdecimal():
            return await asyncio.open_connection("127.0.0.1", int(self._target))
        return await asyncio.open_unix_connection(self._target)

    async def _requests(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        doomed: asyncio.Event,
        swallowed: asyncio.Event,
        gate: asyncio.Event,
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 20):
                await self._open.wait()
                await gate.wait()
                if swallowed.is_set():
                    continue
                if self._cuts and self._marker in data:
                    self._cuts -= 1
                    self.cuts_made += 1
                    doomed.set()
                writer.write(data)
                await writer.drain()
        self._close(writer)

    async def _replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, doomed: asyncio.Event
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(1 << 20):
                await self._open.wait()
                if doomed.is_set():
                    # Executed: the server has answered. The client will never know.
                    break
                if self._bytes_left is not None and self._bytes_left < len(data):
                    writer.write(data[: self._bytes_left])
                    await writer.drain()
                    self._bytes_left = None
                    self.cuts_made += 1
                    self._cut.set()
                    self.reset()
                    break
                if self._bytes_left is not None:
                    self._bytes_left -= len(data)
                writer.write(data)
                await writer.drain()
        self._close(writer)

    def _close(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.close()

    async def end(self) -> None:
        self.release()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.reset()


@asynccontextmanager
async def fault_proxy(target: str) -> AsyncIterator[FaultProxy]:
    """`target`: a unix socket's path, or a port of this machine."""
    proxy = FaultProxy(target)
    server = proxy.server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.end()
        await server.wait_closed()
