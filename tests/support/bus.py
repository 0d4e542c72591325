"""
Stands between the nodes of a cluster, to cut one of them off from the others.

Each node announces a port of ours as the one for other nodes, and connects from an address of its
own (all of 127.0.0.0/8 is the loopback), so a connection tells which two nodes it joins.
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import Any

from tests.support.servers import free_port


class Bus:
    """Forwards between nodes, from a thread of its own: a cluster outlives the loop of a test."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._cut: set[int] = set()
        self._open: dict[asyncio.StreamWriter, frozenset[int]] = {}
        self._servers: list[asyncio.Server] = []

    def join(self, number: int, port: int) -> list[str]:
        """Stand before a node's port for other nodes. Return the options that make it use us."""
        announced = free_port()
        self._run(self._listen(number, port, announced))
        return [
            *("--cluster-announce-bus-port", str(announced)),
            *("--cluster-announce-ip", "127.0.0.1"),
            *("--replica-announce-ip", "127.0.0.1"),
            *("--bind-source-addr", _address(number)),
        ]

    def cut_off(self, number: int) -> None:
        """End every connection between this node and the others, and allow no new one."""
        self._loop.call_soon_threadsafe(self._separate, {number})

    def heal(self) -> None:
        self._loop.call_soon_threadsafe(self._separate, set())

    def close(self) -> None:
        self._run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for writer in self._open:
            writer.transport.abort()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _separate(self, cut: set[int]) -> None:
        self._cut = cut
        for writer, ends in list(self._open.items()):
            if self._is_cut(ends):
                writer.transport.abort()

    def _is_cut(self, ends: frozenset[int]) -> bool:
        return bool(ends & self._cut) and not ends <= self._cut

    async def _listen(self, number: int, port: int, announced: int) -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            ends = frozenset({number, _number(writer.get_extra_info("peername")[0])})
            writers = [writer]
            try:
                if self._is_cut(ends):
                    return
                far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
                writers.append(far_writer)
                self._open |= dict.fromkeys(writers, ends)
                await asyncio.gather(_pass(reader, far_writer), _pass(far_reader, writer))
            except OSError:
                pass  # the node is down, or just ends
            finally:
                for each in writers:
                    self._open.pop(each, None)
                    each.transport.abort()

        self._servers.append(await asyncio.start_server(serve, "127.0.0.1", announced))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


def _address(number: int) -> str:
    return f"127.0.0.{10 + number}"


def _number(address: str) -> int:
    return int(address.rpartition(".")[2]) - 10
