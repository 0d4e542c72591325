"""
Measures webhook delivery against bare HTTP loops: `python benchmarks/bench_webhooks.py [--quick]`.

The receiver is a separate process and answers every POST at once. The peers, a
bare aiohttp loop and a bare loop over one shared httpx.AsyncClient, only POST.
Ours claims, signs, posts and records each delivery. All run in interleaved
rounds, and the medians are compared. For ours alone it then measures the time
from the call to the receiver on an idle queue, healthy endpoints next to a
hanging one of their host, and the memory for a compressed bomb and for each waiting delivery.
Writes out/bench_webhooks.json.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import gzip
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import aiohttp
import httpx

from tests.support.queues import open_queue, stores_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cache.connection import embedded
from settings import Settings, load_settings
from worker.app.service import build_worker
from worker.client import JobQueue
from worker.http.client import build_http_client, post_webhook
from worker.http.policy import EgressPolicy, parse_networks

ROOT = Path(__file__).resolve().parent.parent
CONCURRENCY = 100
BODY = json.dumps({"agent": "agent-1", "text": "x" * 1400}).encode()
SECRET = "whsec_" + base64.b64encode(b"b" * 32).decode()
HEALTHY = 50
BOMB_BYTES = 512 * 1024 * 1024


# -- the receiver: a process of its own ----------------------------------------


class Receiver(asyncio.Protocol):
    """POST: 200 at once (/hang: never). GET /seen: {webhook-id: time}. Enough HTTP for that."""

    seen: ClassVar[dict[str, float]] = {}
    bomb: ClassVar[bytes] = b""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].decode("latin-1")
            lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
            size = int(lines.get("content-length", 0))
            if len(self.buffer) < end + 4 + size:
                return
            self.buffer = self.buffer[end + 4 + size :]
            self.answer(head.split(" ", 2), lines)

    def answer(self, line: list[str], headers: dict[str, str]) -> None:
        body, more = b"", ""
        if line[0] == "GET":
            body = json.dumps(self.seen).encode()
            self.seen.clear()
        elif line[1] == "/hang":
            return
        elif line[1] == "/bomb":
            body, more = self.bomb, "content-encoding: gzip\r\n"
        else:
            self.seen[headers.get("webhook-id", "")] = time.time()
        head = f"HTTP/1.1 200 OK\r\n{more}content-length: {len(body)}\r\n\r\n"
        self.transport.write(head.encode() + body)


async def serve_receiver() -> None:
    zeros = gzip.GzipFile(fileobj=(packed := tempfile.TemporaryFile()), mode="wb")  # noqa: SIM115
    for _ in range(BOMB_BYTES // (1024 * 1024)):
        zeros.write(bytes(1024 * 1024))
    zeros.close()
    packed.seek(0)
    Receiver.bomb = packed.read()
    server = await asyncio.get_running_loop().create_server(Receiver, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


@contextlib.contextmanager
def receiver() -> Any:
    process = subprocess.Popen(
        [sys.executable, __file__, "--receiver"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(10)


# -- the contenders --------------------------------------------------------------


async def at_once(count: int, work: Callable[[], Awaitable[Any]]) -> float:
    """`count` calls, CONCURRENCY at a time; calls a second."""
    left = iter(range(count))

    async def run() -> None:
        for _ in left:
            await work()

    start = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(CONCURRENCY)))
    return count / (time.perf_counter() - start)


async def bare_aiohttp(url: str, count: int) -> float:
    connector = aiohttp.TCPConnector(limit=CONCURRENCY)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def post() -> None:
            async with session.post(url, data=BODY) as response:
                await response.read()

        return await at_once(count, post)


async def bare_httpx(url: str, count: int) -> float:
    limits = httpx.Limits(max_connections=CONCURRENCY, max_keepalive_connections=CONCURRENCY)
    async with httpx.AsyncClient(limits=limits, trust_env=False, timeout=60) as client:
        return await at_once(count, lambda: client.post(url, content=BODY))


async def stored(queue: JobQueue, url: str, count: int) -> float:
    """Store deliveries that fall due together; returns that time, a tenth of a second before it."""
    due = time.time() + 0.5 + count / 400
    for _ in range(count):
        await queue.send_webhook(url, BODY, event_type="bench", delay_s=max(0.0, due - time.time()))
    if time.time() > due:
        raise RuntimeError("the deliveries fell due before all were stored")
    await asyncio.sleep(max(0.0, due - time.time() - 0.1))
    return due


async def drained(queue: JobQueue, due: float, _url: str, count: int) -> float:
    """Deliveries a second from the moment all fall due to the last one's record."""
    index = stores_of(queue).keys.webhook_ended("delivered")
    before = await stores_of(queue).client.zcard(index)
    await asyncio.sleep(max(0.0, due - time.time()))
    start = time.perf_counter()
    while await stores_of(queue).client.zcard(index) < before + count:  # noqa: ASYNC110  (another process may end it)
        await asyncio.sleep(0.02)
    return count / (time.perf_counter() - start)


# -- ours alone --------------------------------------------------------------------


async def seen_at(url: str) -> dict[str, float]:
    async with httpx.AsyncClient(trust_env=False) as client:
        found: dict[str, float] = (await client.get(f"{url}/seen")).json()
    return found


async def delivered(queue: JobQueue, ids: list[str]) -> None:
    while True:
        found = [await queue.delivery(id_) for id_ in ids[-1:]]
        if all(d.state == "delivered" for d in found):
            ids.pop()
            if not ids:
                return
            continue
        await asyncio.sleep(0.005)


async def latency(queue: JobQueue, url: str, count: int) -> list[float]:
    """Milliseconds from the call to the receiver, one webhook at a time."""
    sent: dict[str, float] = {}
    for _ in range(count):
        start = time.time()
        id_ = await queue.send_webhook(f"{url}/ok", BODY, event_type="bench")
        sent[id_] = start
        await delivered(queue, [id_])
    seen = await seen_at(url)
    return [(seen[id_] - start) * 1000 for id_, start in sent.items()]


async def paced(queue: JobQueue, url: str, count: int, hanging: int) -> list[float]:
    """The same for a steady stream to many paths, beside deliveries to one of the host that hangs."""
    await seen_at(url)
    for n in range(hanging):
        await queue.send_webhook(f"{url}/hang", BODY, event_type="bench", webhook_id=f"h{n}")
    sent: dict[str, float] = {}
    for n in range(count):
        start = time.time()
        id_ = await queue.send_webhook(f"{url}/ok/{n % HEALTHY}", BODY, event_type="bench")
        sent[id_] = start
        await asyncio.sleep(0.01)
    await delivered(queue, list(sent))
    seen = await seen_at(url)
    return [(seen[id_] - start) * 1000 for id_, start in sent.items()]


async def bomb_growth(url: str) -> tuple[float, str]:
    """Peak growth of this process while a bomb is answered, MB."""
    client = build_http_client(EgressPolicy(parse_networks("127.0.0.0/8")), max_connections=4)
    arguments: dict[str, Any] = {
        "headers": {}, "body": BODY, "timeout_s": 30, "keep_bytes": 1024, "max_bytes": 1_048_576,
    }  # fmt: skip
    await post_webhook(client, f"{url}/ok", **arguments)
    before, peak = rss_mb(), 0.0
    posting = asyncio.create_task(post_webhook(client, f"{url}/bomb", **arguments))
    while not posting.done():
        peak = max(peak, rss_mb())
        await asyncio.sleep(0.001)
    await client.aclose()
    reply = await posting
    return max(peak, rss_mb()) - before, f"{reply.status} {reply.error}".strip()


def rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def bytes_each(queue: JobQueue, count: int) -> float:
    """Memory of the server for each waiting delivery and its job, bytes, body included."""
    before = (await stores_of(queue).client.info("memory"))["used_memory"]
    sends = iter(range(count))

    async def send() -> None:
        for _ in sends:
            await queue.send_webhook(
                "https://hooks.example.com/a", BODY, event_type="bench", delay_s=86_400
            )

    await asyncio.gather(*(send() for _ in range(16)))
    after = (await stores_of(queue).client.info("memory"))["used_memory"]
    return float(after - before) / count


# -- the run -----------------------------------------------------------------------


def settings_for(url: str, **more: Any) -> Settings:
    values: dict[str, Any] = {
        "redis_url": url,
        "webhook_allow_cidrs": "127.0.0.0/8",
        "webhook_secret": SECRET,
        "worker_max_jobs": CONCURRENCY,
        "webhook_endpoint_concurrency": CONCURRENCY,
        "worker_log_level": "ERROR",
        "worker_shutdown_grace_s": 0,
    }
    return load_settings(**{**values, **more})


@contextlib.asynccontextmanager
async def at_work(settings: Settings) -> AsyncIterator[JobQueue]:
    worker = build_worker(settings)
    task = asyncio.create_task(worker.run())
    async with open_queue(settings) as queue:
        while not await stores_of(queue).client.exists(stores_of(queue).keys.health):  # noqa: ASYNC110  (it is a key)
            await asyncio.sleep(0.01)
        try:
            yield queue
        finally:
            worker.force()
            await task


def percentile(values: list[float], percent: int) -> float:
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 2)


async def measure(url: str, server: str, *, quick: bool) -> dict[str, Any]:
    rounds, count, slow = (2, 400, 100) if quick else (5, 2000, 200)
    rates: dict[str, list[float]] = {"ours": [], "bare aiohttp": [], "bare httpx": []}
    # On a busy machine, this process's own CPU time is the better measure.
    cpu_us: dict[str, list[float]] = {name: [] for name in rates}

    async def turn(name: str, calls: int, run: Callable[[str, int], Awaitable[float]]) -> None:
        before = time.process_time()
        rates[name].append(await run(f"{url}/ok", calls))
        cpu_us[name].append((time.process_time() - before) / calls * 1e6)

    async with at_work(settings_for(server)) as queue:
        for _ in range(rounds):
            due = await stored(queue, f"{url}/ok", count)
            await turn("ours", count, partial(drained, queue, due))
            await turn("bare aiohttp", count, bare_aiohttp)
            await turn("bare httpx", slow, bare_httpx)
        await seen_at(url)
        idle = await latency(queue, url, 50 if quick else 300)
    fair = settings_for(server, webhook_endpoint_concurrency=16, webhook_timeout_s=5)
    alone: list[float] = []
    beside: list[float] = []
    async with at_work(fair) as queue:
        alone += await paced(queue, url, 100 if quick else 500, hanging=0)
        beside += await paced(queue, url, 100 if quick else 500, hanging=100)
        alone += await paced(queue, url, 100 if quick else 500, hanging=0)
        memory = await bytes_each(queue, 2000 if quick else 100_000)
    growth, answer = await bomb_growth(url)
    medians = {name: round(statistics.median(found), 1) for name, found in rates.items()}
    return {
        "per_second_at_concurrency_100": medians,
        "cpu_us_each": {name: round(statistics.median(v)) for name, v in cpu_us.items()},
        "rounds": {name: [round(v, 1) for v in found] for name, found in rates.items()},
        "share_of_bare_aiohttp": round(medians["ours"] / medians["bare aiohttp"], 3),
        "times_bare_httpx": round(medians["ours"] / medians["bare httpx"], 2),
        "idle_ms": {"p50": percentile(idle, 50), "p99": percentile(idle, 99)},
        "healthy_p99_ms": {"alone": percentile(alone, 99), "beside_a_hang": percentile(beside, 99)},
        "bomb": {"growth_mb": round(growth, 1), "ended_as": answer},
        "bytes_a_waiting_delivery": round(memory),
        "body_bytes": len(BODY),
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small counts, to see that it runs")
    parser.add_argument("--receiver", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.receiver:
        asyncio.run(serve_receiver())
        return
    logging.disable(logging.WARNING)
    server = embedded.acquire("embedded://")
    try:
        with receiver() as url:
            found = asyncio.run(measure(url, server, quick=chosen.quick))
    finally:
        embedded.release("embedded://")
    out = ROOT / "out"
    out.mkdir(exist_ok=True)
    (out / "bench_webhooks.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
