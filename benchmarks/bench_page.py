"""
Measures the operators' page on a large queue: `python benchmarks/bench_page.py [--quick]`.

1,000,000 waiting jobs, 100,000 dead letters and 200 workers (--quick: a tenth of both). For each page,
/metrics and /api/stats: milliseconds to the first byte, and of CPU, which a busy machine lengthens
less: of the process that serves it, and of the queue's server; how long its longest command holds that
server; and the share of the server's time that it takes where it is read every 10 s, as an open page is.
Then that process's memory (RSS).
Writes out/bench_page.json. Needs Linux: it reads /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cache.connection import embedded  # noqa: E402
from cache.connection.pool import PoolOptions, open_pool  # noqa: E402
from cache.encoding import codec  # noqa: E402
from worker.keys import QueueKeys  # noqa: E402

LETTA = str(Path(sys.executable).with_name("letta-workers"))
PATHS = (
    "/",
    "/jobs",
    "/jobs?state=deferred",
    "/dead",
    "/dead?offset={half}",
    "/workers",
    "/history",
    "/metrics",
    "/api/overview",
    "/api/stats",
)
ROUNDS = 30
SLOWLOG = 10_000
# An open page reads itself anew so often (worker/web/page/static/page.js).
REFRESH_S = 10
STEP = 10_000
WORKERS = 200
# Keys that a client of ours would write, a step at a time.
FILL = """
for n = ARGV[1], ARGV[1] + ARGV[2] - 1 do
  redis.call('ZADD', KEYS[1], ARGV[3] + n, 'job-' .. n)
  redis.call('SET', KEYS[2] .. 'job-' .. n, ARGV[4])
end
"""
FILL_DEAD = """
for n = ARGV[1], ARGV[1] + ARGV[2] - 1 do
  redis.call('ZADD', KEYS[1], ARGV[3] + n, 'dead-' .. n)
  redis.call('ZADD', KEYS[3], 3, 'dead-' .. n)
  redis.call('HSET', KEYS[2] .. 'dead-' .. n, 'name', 'send_mail', 'reason', 'exhausted', 'tries', 5,
    'error', 'TimeoutError: no answer within 30 s', 'queue', 3, 'died', ARGV[3] + n, 'body', ARGV[4])
end
"""


async def fill(client: Any, waiting: int, dead: int) -> None:
    keys = QueueKeys()
    body = codec.encode({"f": "send_mail", "a": ["a@example.com"], "k": {}, "et": 1})
    start = int(time.time() * 1000) - waiting
    for at in range(0, waiting, STEP):
        names = [keys.queue("default"), keys.job("")]
        await client.eval(FILL, len(names), *names, at, STEP, start, body)
    for at in range(0, dead, STEP):
        names = [keys.dead, keys.dead_job(""), keys.dead_queues]
        await client.eval(FILL_DEAD, len(names), *names, at, STEP, start, body)
    counts = dict.fromkeys(("running", "max_jobs", "completed", "failed", "retried"), 7)
    async with client.pipeline(transaction=False) as pipe:
        for n in range(WORKERS):
            beat = {"worker_id": f"w-{n}", "host": f"host-{n}", "pid": n, "draining": False}
            pipe.zadd(keys.workers, {f"w-{n}": (time.time() + 3600) * 1000})
            pipe.set(keys.worker(f"w-{n}"), json.dumps({**beat, **counts, "started": time.time()}))
        await pipe.execute()


async def server_cpu_s(client: Any) -> float:
    found = await client.info("cpu")
    return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])


class Site:
    """`letta-workers web` in a process of its own."""

    def __init__(self, url: str, pid: int) -> None:
        self.url = url
        self._proc = Path(f"/proc/{pid}")

    def cpu_s(self) -> float:
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def rss_mb(self) -> float:
        resident = int((self._proc / "statm").read_text().split()[1])
        return resident * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def serving(server: str) -> Iterator[Site]:
    command = [LETTA, "web", "--listen", "127.0.0.1:0"]
    environ = {**os.environ, "LETTA_REDIS_URL": server, "LETTA_WORKER_LOG_FORMAT": "json"}
    with subprocess.Popen(command, env=environ, stderr=subprocess.PIPE) as process:
        try:
            assert process.stderr is not None
            started = next(line for line in process.stderr if b"web.started" in line)
            yield Site(f"http://{json.loads(started)['address']}", process.pid)
        finally:
            process.terminate()


async def measure(client: Any, site: Site, dead: int) -> list[dict[str, Any]]:
    rows = []
    async with httpx.AsyncClient(base_url=site.url, timeout=60, trust_env=False) as web:
        for path in (each.format(half=dead // 2) for each in PATHS):
            (await web.get(path)).raise_for_status()
            before, web_before, times = await server_cpu_s(client), site.cpu_s(), []
            for _ in range(ROUNDS):
                begun = time.perf_counter()
                async with web.stream("GET", path) as reply:
                    times.append((time.perf_counter() - begun) * 1000)
                    await reply.aread()
            row: dict[str, Any] = {
                "path": path,
                "median_ms": statistics.median(times),
                "worst_ms": max(times),
            }
            row["web_cpu_ms"] = (site.cpu_s() - web_before) / ROUNDS * 1000
            row["server_cpu_ms"] = (await server_cpu_s(client) - before) / ROUNDS * 1000
            row["longest_ms"] = await longest_ms(client, web, path)
            row["open_percent"] = row["server_cpu_ms"] / REFRESH_S / 1000 * 100
            rows.append(row)
    return rows


async def longest_ms(client: Any, web: httpx.AsyncClient, path: str) -> float:
    """How long the longest command of one reply holds the server: the least of five replies."""
    found: list[float] = []
    for _ in range(5):
        await client.config_set("slowlog-log-slower-than", 0)
        await client.execute_command("SLOWLOG", "RESET")
        await web.get(path)
        await client.config_set("slowlog-log-slower-than", -1)
        rows = await client.execute_command("SLOWLOG", "GET", SLOWLOG)
        found.append(max(row[2] for row in rows) / 1000)
    return min(found)


async def run(server: str, *, waiting: int, dead: int) -> dict[str, Any]:
    async with open_pool(server, PoolOptions(), name="bench") as client:
        await client.config_set("slowlog-max-len", SLOWLOG)
        await fill(client, waiting, dead)
        with serving(server) as site:
            pages = await measure(client, site, dead)
            return {"waiting": waiting, "dead": dead, "rss_mb": site.rss_mb(), "pages": pages}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    share = 10 if parser.parse_args().quick else 1
    server = embedded.acquire("embedded://")
    try:
        found = asyncio.run(run(server, waiting=1_000_000 // share, dead=100_000 // share))
    finally:
        embedded.release("embedded://")
    print(f"{found['waiting']:,} waiting jobs, {found['dead']:,} dead letters, {WORKERS} workers")
    names = (
        *("median_ms", "worst_ms", "web_cpu_ms", "server_cpu_ms"),
        *("longest_ms", "open_percent"),
    )
    print(f"{'page':<24}" + "".join(f"{name:>15}" for name in names))
    for row in found["pages"]:
        print(f"{row['path']:<24}" + "".join(f"{row[name]:>15.2f}" for name in names))
    print(f"memory of the web process: {found['rss_mb']:.0f} MB")
    (ROOT / "out").mkdir(exist_ok=True)
    (ROOT / "out" / "bench_page.json").write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
