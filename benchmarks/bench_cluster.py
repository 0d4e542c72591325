"""
Measures a cluster of three against one server: `python benchmarks/bench_cluster.py [--quick] [--only queue]`.

The queue lies on one node (cluster_queue.py). The rest is about a hit of the cache.

What a hit costs more on a cluster has two parts: finding its node, and three sockets
instead of one. A bare client, which counts bytes and decodes nothing, shows the
second part alone. CPU time of this process; medians over short rounds in turns.
Writes out/bench_cluster.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import cluster_queue
from cache.connection.commands import encode_command
from tests.support.caches import cache_on
from tests.support.clusters import Cluster, cluster
from tests.support.servers import valkey

AGENTS, VALUE = 200, b"x" * 4096
# Callers at once, and calls of a round.
ROUNDS = {1: 600, 32: 3200, 256: 5120}
Get = Callable[[str], Awaitable[Any]]
NAMES = [f"a{number:03}" for number in range(AGENTS)]


class Bare(asyncio.BufferedProtocol):
    """Sends the commands of a tick in one write, and hands out replies of a known size in order."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._calls: deque[asyncio.Future[bool]] = deque()
        self._out: list[bytes] = []
        self._got = 0
        self._buffer = memoryview(bytearray(512 * 1024))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        whole, self._got = divmod(self._got + nbytes, self._size)
        for _ in range(whole):
            self._calls.popleft().set_result(True)

    def call(self, packed: bytes) -> asyncio.Future[bool]:
        loop = asyncio.get_running_loop()
        call: asyncio.Future[bool] = loop.create_future()
        self._calls.append(call)
        if not self._out:
            loop.call_soon(self._flush)
        self._out.append(packed)
        return call

    def _flush(self) -> None:
        self._transport.write(b"".join(self._out))
        self._out.clear()


def packed(name: str) -> bytes:
    key = f"lc:{{{name}}}"
    return encode_command(("MGET", key, key + ":state:"))


async def bare(ports: list[int], node_of: Callable[[str], int]) -> Get:
    """A client with one socket to each port."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection("127.0.0.1", ports[node_of(NAMES[0])])
    writer.write(packed(NAMES[0]))
    size = len(await reader.readexactly(len(VALUE)))
    while True:  # the reply's end: no more arrives
        try:
            async with asyncio.timeout(0.5):
                size += len(await reader.read(1 << 20))
        except TimeoutError:
            break
    writer.close()
    sockets = [
        (await loop.create_connection(lambda: Bare(size), "127.0.0.1", port))[1] for port in ports
    ]
    routes = {name: (sockets[node_of(name)], packed(name)) for name in NAMES}

    async def get(name: str) -> bool:
        socket, command = routes[name]
        return await socket.call(command)

    return get


async def cpu_us(get: Get, callers: int) -> float:
    """CPU time of a call, with `callers` side by side."""
    left = total = ROUNDS[callers]

    async def caller(step: int) -> None:
        nonlocal left
        while left > 0:
            left -= 1
            if await get(NAMES[step % AGENTS]) is None:
                raise RuntimeError("a miss: the contender would be timed for nothing")
            step += 13

    start = time.process_time()
    await asyncio.gather(*(caller(number * 7) for number in range(callers)))
    return (time.process_time() - start) / total * 1e6


async def compare(contenders: dict[str, Get], callers: int, rounds: int) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name in list(contenders)[:: 1 if number % 2 else -1]:
            found[name].append(await cpu_us(contenders[name], callers))
    return {name: statistics.median(times) for name, times in found.items()}


async def run(nodes: Cluster, port: int, rounds: int) -> dict[int, dict[str, float]]:
    figures: dict[int, dict[str, float]] = {}
    async with (
        cache_on(nodes.url, "lc:", ttl_s=3600) as many,
        cache_on(f"redis://127.0.0.1:{port}", "lc:", ttl_s=3600) as one,
    ):
        for name in NAMES:
            assert await many.agents.set(name, VALUE)
            assert await one.agents.set(name, VALUE)

        def node_of(name: str) -> int:
            return nodes.nodes.index(nodes.node_of(f"lc:{{{name}}}"))

        contenders: dict[str, Get] = {
            "one server": one.agents.get,
            "cluster": many.agents.get,
            "bare, one socket": await bare([port], lambda _name: 0),
            "bare, three sockets": await bare([node.port for node in nodes.nodes], node_of),
        }
        for callers in ROUNDS:
            us = figures[callers] = await compare(contenders, callers, rounds)
            more = us["cluster"] - us["one server"]
            floor = us["bare, three sockets"] - us["bare, one socket"]
            print(f"\nCPU of a hit of 4 KB, {callers} at once")
            for name, found in us.items():
                print(f"  {name:20} {found:6.1f} us")
            print(f"  cluster / one server {us['cluster'] / us['one server']:6.2f}")
            print(f"  a cluster costs {more:.1f} us more; three sockets alone {floor:.1f} us")
    return figures


async def measure(rounds: int, only: str) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    with (
        tempfile.TemporaryDirectory() as home,
        valkey(Path(home) / "one", *cluster_queue.SAME) as port,
    ):
        async with cluster(Path(home) / "cluster") as nodes:
            if only != "queue":
                figures["cache"] = await run(nodes, port, rounds)
            if only != "cache":
                urls = {"one server": f"redis://127.0.0.1:{port}", "cluster": nodes.url}
                figures["queue"] = await cluster_queue.compare(urls, max(3, rounds // 8))
                cluster_queue.show(figures["queue"])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="few rounds, for a look")
    parser.add_argument("--only", choices=("cache", "queue"), default="")
    chosen = parser.parse_args()
    figures = asyncio.run(measure(5 if chosen.quick else 41, chosen.only))
    out = Path("out")
    out.mkdir(exist_ok=True)
    (out / "bench_cluster.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
