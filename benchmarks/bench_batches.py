"""
Measures LLM batches: `python benchmarks/bench_batches.py [--quick]`.

intake: submitting requests at once and one by one, next to plain jobs.
whole_way: many lines through the fake provider (sealed, uploaded, polled,
fetched, answered), with the worker's peak memory.
added: the time of a batch beyond the provider's own time.
long_line: one result line of many MiB, or one of 200 KB that is slow to decode, read and stored,
with the longest hold of the event loop.
direct: direct calls under a rate limit across four worker processes.

Provider and workers are separate processes. Writes out/bench_batches.json.
"""

from __future__ import annotations

import argparse
import asyncio
import bisect
import gc
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.queues import open_queue, stores_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import structlog

from cache.connection import embedded
from settings import load_settings
from tests.support.providers import FakeProvider, fake_provider
from worker.app.service import build_worker
from worker.client import JobQueue
from worker.http.client import build_http_client
from worker.http.policy import EgressPolicy, parse_networks
from worker.llm.providers import OpenAIProvider, RemoteBatch

ROOT = Path(__file__).resolve().parent.parent
CHAT = "/v1/chat/completions"
LIMIT_PER_MINUTE = 600
WORKERS = 4
# How long the fake works on a batch, and how often it is asked, where what we add is measured.
PROVIDER_S, POLL_S = 2.0, 0.25
# Requests of a batch there; 500 is the setting's default.
SIZES = (1, 50, 500)


def body(number: int, words: int = 60) -> dict[str, Any]:
    text = f"question {number} " + "word " * words
    return {"model": "m", "messages": [{"role": "user", "content": text}], "max_tokens": 100}


def options(url: str, fake: FakeProvider, **more: Any) -> dict[str, Any]:
    return {
        "redis_url": url,
        "openai_base_url": fake.openai_url,
        "llm_allow_cidrs": "127.0.0.0/8",
        "llm_batch_cron": "0 0 1 1 *",
        "llm_batch_max_age_s": 3600.0,
        "llm_poll_interval_s": 0.2,
        "worker_log_level": "ERROR",
        "worker_log_format": "json",
        **more,
    }


@contextmanager
def worker_process(values: dict[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, __file__, "--worker", json.dumps(values)], stdin=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


async def serve(values: dict[str, Any]) -> None:
    worker = build_worker(load_settings(**values))
    asyncio.get_running_loop().add_signal_handler(15, worker.drain)
    await worker.run()


def peak_rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    return 0.0


# -- intake ----------------------------------------------------------------------


async def intake(url: str, fake: FakeProvider, *, many: int, single: int) -> dict[str, Any]:
    values = options(url, fake, llm_batch_max_requests=50_000, queue_max_length=0)
    settings = load_settings(**values)
    ratios, rates = [], []
    async with open_queue(settings) as queue:
        for round_ in range(5):
            ours = await timed(queue, round_, single)
            jobs = await timed_jobs(queue, single)
            ratios.append(jobs / ours)
            rates.append((single / ours, single / jobs))
        await stores_of(queue).client.flushdb()
        bodies = [body(number) for number in range(many)]
        start = time.perf_counter()
        ids = await queue.submit_many(bodies, provider="openai", endpoint=CHAT)
        took_s = time.perf_counter() - start
        assert len(set(ids)) == many
        await stores_of(queue).client.flushdb()
    return {
        "submit_many_per_s": round(many / took_s),
        "submit_one_by_one_per_s": round(statistics.median(rate[0] for rate in rates)),
        "enqueue_per_s": round(statistics.median(rate[1] for rate in rates)),
        "one_by_one_over_enqueue": round(statistics.median(ratios), 2),
    }


async def timed(queue: JobQueue, round_: int, count: int) -> float:
    start = time.perf_counter()
    for number in range(count):
        await queue.submit_llm_request(
            body(round_ * count + number), provider="openai", endpoint=CHAT
        )
    return time.perf_counter() - start


async def timed_jobs(queue: JobQueue, count: int) -> float:
    start = time.perf_counter()
    for number in range(count):
        await queue.enqueue("job", body(number))
    return time.perf_counter() - start


# -- the whole way -----------------------------------------------------------------


async def whole_way(url: str, fake: FakeProvider, *, lines: int) -> dict[str, Any]:
    values = options(url, fake, llm_batch_max_requests=50_000, llm_timeout_s=300)
    async with open_queue(load_settings(**values)) as queue:
        ids = await queue.submit_many(
            (body(number) for number in range(lines)), provider="openai", endpoint=CHAT
        )
        with worker_process(values) as process:
            start = time.perf_counter()
            await queue.flush_llm_batches()
            while True:
                shown = await queue.llm.batches.list()
                if shown and all(row["state"] == "done" for row in shown):
                    break
                await asyncio.sleep(0.1)
            took_s = time.perf_counter() - start
            peak = peak_rss_mb(process.pid)
        answer = await queue.llm_result(ids[-1], timeout_s=5)
        assert answer["choices"][0]["message"]["content"].startswith("echo: question")
        succeeded = sum(row["succeeded"] for row in shown)
        await stores_of(queue).client.flushdb()
    return {
        "lines": lines,
        "batches": len(shown),
        "answered": succeeded,
        "took_s": round(took_s, 1),
        "lines_per_s": round(lines / took_s),
        "worker_peak_rss_mb": round(peak, 1),
    }


# -- what we add -----------------------------------------------------------------------


async def added(url: str, fake: FakeProvider, *, rounds: int) -> dict[str, Any]:
    """
    Time from the submission of requests that fill a batch to the last one's answer, less what the
    provider takes: flush, upload, submission, the wait for the next look, reading, storing.
    """
    found: dict[str, Any] = {"provider_s": PROVIDER_S, "poll_interval_s": POLL_S}
    for size in SIZES:
        values = options(
            url, fake, llm_batch_max_requests=size, llm_poll_interval_s=POLL_S, llm_timeout_s=60
        )
        fake.reset()
        fake.set(takes_s=PROVIDER_S, polls=0)
        async with open_queue(load_settings(**values)) as queue:
            with worker_process(values):
                await one_batch(queue, size, 0)  # while the process starts
                times = [await one_batch(queue, size, 1 + round_) for round_ in range(rounds)]
            await stores_of(queue).client.flushdb()
        found[f"added_s_{size}_median"] = round(statistics.median(times), 3)
        found[f"added_s_{size}_worst"] = round(max(times), 3)
    fake.reset()
    return found


def sample(ids: list[str]) -> list[str]:
    """Requests that the last one is surely among, or is next to: answers come in any order."""
    return ids if len(ids) < 10 else [*ids[:5], *ids[-5:]]


async def one_batch(queue: JobQueue, size: int, round_: int) -> float:
    bodies = [body(round_ * size + number) for number in range(size)]
    ids = await queue.submit_many(bodies, provider="openai", endpoint=CHAT, dedupe=False)
    start = time.perf_counter()
    await asyncio.gather(*(queue.llm_result(id_, timeout_s=60) for id_ in sample(ids)))
    return time.perf_counter() - start - PROVIDER_S


# -- one long line -----------------------------------------------------------------------


# Values of 200 KB.
SLOW = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "wide": "[" + "[[]]," * 40_000 + "[]]",
    "nan": "[" + "1," * 100_000 + "NaN]",
    "integer": "[" + "1," * 100_000 + "1" * 25 + "]",
}


def long_line(request_id: str, mib: int, kind: str) -> bytes:
    """A result line with a text of words, with many numbers, or with a value that decodes slowly."""
    if kind in SLOW:
        return long_line(request_id, 0, "text").replace(b'""', SLOW[kind].encode())
    part: Any = "It was a bright cold day in April. " if kind == "text" else [0.123456789, -1.5]
    content = part * (mib * 1024 * 1024 // (len(part) if kind == "text" else 19))
    body = {"choices": [{"message": {"content": content}}], "usage": {"prompt_tokens": 1}}
    item = {"custom_id": f"{request_id}-{'b' * 24}", "response": {"status_code": 200, "body": body}}
    return json.dumps(item).encode() + b"\n"


async def serve_line(request_id: str, mib: int, kind: str) -> None:
    """Answer every request with one long line; the port is printed."""
    line = long_line(request_id, mib, kind)
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(line)}\r\n\r\n".encode()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + line)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


@dataclass
class Hold:
    """The longest time in ms that other tasks had to wait, and the processor's part of it."""

    ms: float = 0.0
    cpu_ms: float = 0.0


@asynccontextmanager
async def longest_hold() -> AsyncIterator[Hold]:
    hold = Hold()

    async def watch() -> None:
        while True:
            start, cpu = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0.001)
            hold.ms = max(hold.ms, (time.perf_counter() - start) * 1000 - 1)
            hold.cpu_ms = max(hold.cpu_ms, (time.thread_time() - cpu) * 1000)

    task = asyncio.create_task(watch())
    yield hold
    task.cancel()


async def one_line(url: str, fake: FakeProvider, *, mib: int, kind: str) -> dict[str, float]:
    async with open_queue(load_settings(**options(url, fake))) as queue:
        id_ = await queue.submit_llm_request(body(1), provider="openai", endpoint=CHAT)
        command = [sys.executable, __file__, "--line", json.dumps([id_, mib, kind])]
        server = subprocess.Popen(  # noqa: ASYNC220
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert server.stdout is not None
        base = f"http://127.0.0.1:{int(server.stdout.readline())}/v1"
        policy = EgressPolicy(parse_networks("127.0.0.0/8"))
        remote = RemoteBatch("b", "completed", ended=True, files=("f",))
        gc.collect()
        gc.freeze()  # as the fork server of the workers does
        async with build_http_client(policy, max_connections=1) as client, longest_hold() as hold:
            provider = OpenAIProvider(client, base_url=base, api_key="k" * 20, timeout_s=60)
            start, cpu = time.perf_counter(), time.process_time()
            async for _, answer in provider.results(remote):
                read_s = time.perf_counter() - start
                assert await stores_of(queue).requests.answer(id_, answer)
            took_s, cpu_s = time.perf_counter() - start, time.process_time() - cpu
        server.communicate()
        await stores_of(queue).client.flushdb()
    return {
        "read_s": round(read_s, 2),
        "stored_s": round(took_s, 2),
        "cpu_s": round(cpu_s, 2),
        "longest_hold_ms": round(hold.ms, 1),
        "longest_hold_cpu_ms": round(hold.cpu_ms, 1),
    }


async def lines(url: str, fake: FakeProvider, *, sizes: tuple[int, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in ("text", "numbers"):
        for mib in sizes:
            shown = await one_line(url, fake, mib=mib, kind=kind)
            found |= {f"{kind}_{mib}_mib_{name}": value for name, value in shown.items()}
    for kind in SLOW:
        shown = await one_line(url, fake, mib=0, kind=kind)
        found |= {f"{kind}_200_kb_{name}": shown[name] for name in shown if "hold" in name}
    return found


# -- direct calls ----------------------------------------------------------------------


async def direct(url: str, fake: FakeProvider, *, seconds: float) -> dict[str, Any]:
    values = options(url, fake, llm_requests_per_minute=LIMIT_PER_MINUTE)
    fake.reset()
    async with open_queue(load_settings(**values)) as queue:
        for number in range(int(LIMIT_PER_MINUTE / 60 * seconds * 1.5)):
            await queue.submit_llm_request(
                body(number), provider="openai", endpoint=CHAT, urgent=True, dedupe=False
            )
        with (
            worker_process(values),
            worker_process(values),
            worker_process(values),
            worker_process(values),
        ):
            times = await call_times(fake, seconds)
        await stores_of(queue).client.flushdb()
    window_s = min(60.0, seconds)
    allowed = LIMIT_PER_MINUTE * window_s / 60
    counts = [
        bisect.bisect_left(times, start + window_s) - number
        for number, start in enumerate(times)
        if start + window_s <= times[-1]
    ]
    return {
        "workers": WORKERS,
        "limit_per_minute": LIMIT_PER_MINUTE,
        "window_s": window_s,
        "allowed": allowed,
        "most_in_any_window": max(counts, default=len(times)),
        "least_in_any_window": min(counts, default=len(times)),
    }


async def call_times(fake: FakeProvider, seconds: float) -> list[float]:
    """Return when the provider was called, for `seconds` from the first call."""
    times: list[float] = []
    while not times or time.time() - times[0] < seconds:
        await asyncio.sleep(0.2)
        times = sorted(fake.report()["times"])
    return times


async def main(*, quick: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as home, fake_provider() as fake:
        source = f"embedded://{home}/valkey"
        url = embedded.acquire(source)
        try:
            found = {
                "intake": await intake(
                    url, fake, many=5000 if quick else 50_000, single=200 if quick else 1000
                ),
                "whole_way": await whole_way(url, fake, lines=5000 if quick else 50_000),
                "added": await added(url, fake, rounds=3 if quick else 10),
                "long_line": await lines(url, fake, sizes=(4, 16) if quick else (4, 16, 64)),
                "direct": await direct(url, fake, seconds=10 if quick else 75),
            }
        finally:
            embedded.release(source)
    return {"python": platform.python_version(), "cpus": os.cpu_count(), "quick": quick, **found}


def table(found: dict[str, Any]) -> None:
    for part in ("intake", "whole_way", "added", "long_line", "direct"):
        print(part)
        for name, value in found[part].items():
            print(f"  {name:<34}{value:>12}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--line", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    if arguments.worker:
        asyncio.run(serve(json.loads(arguments.worker)))
        sys.exit()
    if arguments.line:
        asyncio.run(serve_line(*json.loads(arguments.line)))
        sys.exit()
    report = asyncio.run(main(quick=arguments.quick))
    table(report)
    (ROOT / "out").mkdir(exist_ok=True)
    (ROOT / "out" / "bench_batches.json").write_text(json.dumps(report, indent=2) + "\n")
