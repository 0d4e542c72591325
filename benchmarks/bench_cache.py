"""
Measures the cache against redis-py and its peers: `python benchmarks/bench_cache.py [--quick]`.

All contenders share one run, one server (valkey over loopback TCP), one process
and one event loop. They run in short interleaved rounds on the same keys and
bytes, and the medians are compared, so a disturbance of the machine hits all of
them. Peers (cashews, aiocache: `pip install 'letta-redis[bench]'`) that are not
installed are skipped. Writes out/bench_cache.json.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import json
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from pydantic import BaseModel

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cache import Cache, CacheOptions, LocalOptions
from cache.connection.embedded import server_binary
from cache.connection.pool import PoolOptions, open_pool
from cache.connection.readiness import wait_until_ready

KEYS = 200
PAGE, WINDOW = 50, 200
Get = Callable[[str], Awaitable[Any]]


class Block(BaseModel):
    id: str
    label: str
    value: str
    limit: int = 20_000
    metadata: dict[str, Any] = {}


class Tool(BaseModel):
    id: str
    name: str
    description: str
    json_schema: dict[str, Any]
    tags: list[str]
    return_char_limit: int = 6000


class AgentState(BaseModel):
    """The shape of an agent: blocks, tools with their schemas, ids of its messages."""

    id: str
    name: str
    system: str
    created_at: float
    blocks: list[Block]
    tools: list[Tool]
    message_ids: list[str]
    llm_config: dict[str, Any]


def agent_state(number: int) -> AgentState:
    rng = random.Random(number)

    def text(size: int) -> str:
        return "".join(rng.choices("abcdefghijklmnop qrstuvwxyz", k=size))

    schema = {
        "type": "object",
        "properties": {f"p{n}": {"type": "string", "description": text(80)} for n in range(8)},
        "required": ["p0", "p1"],
    }
    return AgentState(
        id=f"agent-{number}",
        name=text(20),
        system=text(6000),
        created_at=1.7e9,
        blocks=[
            Block(id=f"b{n}", label=f"l{n}", value=text(2400), metadata={"n": n}) for n in range(5)
        ],
        tools=[
            Tool(
                id=f"t{n}",
                name=text(16),
                description=text(300),
                json_schema=schema,
                tags=["a", "b"],
            )
            for n in range(13)
        ],
        message_ids=[f"message-{rng.getrandbits(128):032x}" for _ in range(22)],
        llm_config={"model": "gpt-4o-mini", "context_window": 128_000, "temperature": 0.7},
    )


async def rate(get: Get, tasks: int, seconds: float) -> float:
    """Calls a second, with `tasks` callers side by side on different keys."""
    end = time.perf_counter() + seconds
    calls = 0

    async def caller(number: int) -> None:
        nonlocal calls
        step = number * 7
        while time.perf_counter() < end:
            for _ in range(10):
                if await get(f"agent-{step % KEYS}") is None:
                    raise RuntimeError("a miss: the contender would be timed for nothing")
                step += 13
            calls += 10

    start = time.perf_counter()
    await asyncio.gather(*(caller(number) for number in range(tasks)))
    return calls / (time.perf_counter() - start)


async def compare(
    contenders: dict[str, Get], tasks: int, *, rounds: int, seconds: float
) -> dict[str, float]:
    """Median rate of each, in turns, the order shuffled every round."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(rounds):
        random.shuffle(order)
        for name in order:
            rates[name].append(await rate(contenders[name], tasks, seconds))
    return {name: statistics.median(found) for name, found in rates.items()}


class Report:
    """Rows for people, figures for machines, and whether each target was met."""

    def __init__(self) -> None:
        self.figures: dict[str, Any] = {}
        self.targets: list[dict[str, Any]] = []

    def table(self, title: str, rates: dict[str, float], against: str) -> None:
        self.figures[title] = {name: round(value) for name, value in rates.items()}
        print(f"\n{title}")
        for name, value in rates.items():
            print(f"  {name:32} {value:12,.0f}/s   {value / rates[against]:5.2f}x of {against}")

    def target(self, what: str, value: float, limit: float, *, at_most: bool = False) -> None:
        met = value <= limit if at_most else value >= limit
        self.targets.append({"target": what, "value": round(value, 3), "limit": limit, "met": met})


async def peers(port: int, payload: dict[str, bytes]) -> dict[str, Get]:
    """GETs of the same bytes through the peers that are installed, on keys of their own."""
    found: dict[str, Get] = {}
    if importlib.util.find_spec("cashews"):
        from cashews import Cache as Cashews

        cashews = Cashews()
        cashews.setup(f"redis://127.0.0.1:{port}/1", max_connections=100)
        for key, value in payload.items():
            await cashews.set(key, value)
        found["cashews"] = cashews.get
    if importlib.util.find_spec("aiocache"):
        from aiocache import Cache as Aiocache
        from aiocache.serializers import NullSerializer

        aiocache = Aiocache(
            Aiocache.REDIS, endpoint="127.0.0.1", port=port, db=2, serializer=NullSerializer(
                encoding=None
            ), pool_max_size=100,
        )  # fmt: skip
        for key, value in payload.items():
            await aiocache.set(key, value)
        found["aiocache"] = aiocache.get
    return found


async def bytes_and_models(
    report: Report, cache: Cache, port: int, *, rounds: int, seconds: float
) -> None:
    client = cache.client
    states = {f"agent-{n}": agent_state(n) for n in range(KEYS)}
    payload = {key: state.model_dump_json().encode() for key, state in states.items()}
    report.figures["value_bytes"] = statistics.median(len(data) for data in payload.values())
    for key, data in payload.items():
        await client.set(key, data)
        assert await cache.agents.set(key, data)
        assert await cache.agents.set(key, states[key], scope="model")
    others = await peers(port, payload)
    contenders: dict[str, Get] = {"redis-py": client.get, "cache": cache.agents.get, **others}
    for tasks in (1, 32, 256):
        rates = await compare(contenders, tasks, rounds=rounds, seconds=seconds)
        report.table(f"get of bytes, {tasks} at once", rates, "redis-py")
        if tasks == 1:
            report.target(
                "get, 1 at once: cache / redis-py", rates["cache"] / rates["redis-py"], 0.8
            )
        if tasks == 32:
            report.target(
                "get, 32 at once: cache / redis-py", rates["cache"] / rates["redis-py"], 2
            )
            for name in others:
                ratio = rates["cache"] / rates[name]
                report.target(f"get, 32 at once: cache / {name}", ratio, 2.5)

    async def get_and_decode(key: str) -> AgentState:
        return AgentState.model_validate_json(await client.get(key))

    async def get_model(key: str) -> Any:
        return await cache.agents.get(key, scope="model", model=AgentState)

    models: dict[str, Get] = {"redis-py + model_validate_json": get_and_decode, "cache": get_model}
    rates = await compare(models, 32, rounds=rounds, seconds=seconds)
    report.table("get of a model, 32 at once", rates, "redis-py + model_validate_json")
    ratio = rates["cache"] / rates["redis-py + model_validate_json"]
    report.target("get of a model, 32 at once: cache / redis-py + decode", ratio, 1.5)


async def in_process(report: Report, client: Any, rounds: int, seconds: float) -> None:
    for share in (False, True):
        options = CacheOptions(
            prefix=f"local{share}:", timeout_s=1, local=LocalOptions(ttl_s=600, share_objects=share)
        )
        async with Cache(client, options) as cache:
            state = agent_state(1)
            for number in range(KEYS):
                value = state if share else state.model_dump_json().encode()
                await cache.agents.set(f"agent-{number}", value)
                await cache.agents.get(f"agent-{number}")
            await asyncio.to_thread(lambda: None)
            for number in range(KEYS):
                await cache.agents.get(f"agent-{number}")
            before = cache.stats()["hits"]
            title = f"in-process hit, {'shared model' if share else 'bytes'}"
            rates = await compare({"cache": cache.agents.get}, 1, rounds=rounds, seconds=seconds)
            assert cache.stats()["hits"] == before, "not all were served in the process"
            report.table(title, rates, "cache")
            report.target(f"{title}, a second", rates["cache"], 300_000)


async def messages(report: Report, cache: Cache, client: Any, rounds: int, seconds: float) -> None:
    rows = [
        {"id": f"message-{n}", "sequence_id": n, "role": "user", "content": "x" * 1400}
        for n in range(WINDOW)
    ]
    encode = msgspec.json.encode
    for number in range(20):
        agent = f"agent-{number}"
        await client.set(f"page-{number}", encode(rows))

        async def load() -> list[dict[str, Any]]:
            return rows

        await cache.messages.get_or_load(agent, load, limit=WINDOW)

    async def as_json(key: str) -> Any:
        data = await client.get(f"page-{int(key.removeprefix('agent-')) % 20}")
        return json.loads(data)[: -PAGE - 1 : -1]

    async def as_msgspec(key: str) -> Any:
        data = await client.get(f"page-{int(key.removeprefix('agent-')) % 20}")
        return msgspec.json.decode(data)[: -PAGE - 1 : -1]

    async def page(key: str) -> Any:
        found = await cache.messages.list(f"agent-{int(key.removeprefix('agent-')) % 20}")
        assert found is not None
        return found

    contenders: dict[str, Get] = {
        "one value, json": as_json,
        "one value, msgspec": as_msgspec,
        "window": page,
    }
    for tasks in (1, 32):
        rates = await compare(contenders, tasks, rounds=rounds, seconds=seconds)
        report.table(
            f"page of {PAGE} of {WINDOW} messages, {tasks} at once", rates, "one value, json"
        )
        for name in ("one value, json", "one value, msgspec"):
            share = rates[name] / rates["window"]
            report.target(
                f"page, {tasks} at once: time of a window / {name}", share, 0.6, at_most=True
            )


async def misses(report: Report, cache: Cache, client: Any) -> None:
    """Commands that reach the server for a miss, and for a hit; each is a round trip."""

    async def load() -> bytes:
        return b"value"

    await cache.agents.get_or_load("warm-up", load)
    for what in ("miss", "hit"):
        await client.config_resetstat()
        for number in range(100):
            await cache.agents.get_or_load(f"{number}-of-the-misses", load)
        used = await client.info("commandstats")
        names = ("cmdstat_mget", "cmdstat_hget", "cmdstat_evalsha", "cmdstat_eval")
        calls = {name: used.get(name, {"calls": 0})["calls"] for name in names}
        if what == "miss":  # what scripts call themselves is no trip
            trips = calls["cmdstat_mget"] / 100 + calls["cmdstat_evalsha"] / 100
            report.target("round trips that a miss adds to its GET", trips - 1, 2, at_most=True)
        else:
            report.target("commands of a hit", sum(calls.values()) / 100, 1, at_most=True)
        report.figures[
            f"commands of 100 {what}es" if what == "miss" else "commands of 100 hits"
        ] = calls


@asynccontextmanager
async def reached(url: str) -> AsyncIterator[Any]:
    async with open_pool(url, PoolOptions(), name="bench") as client:
        await wait_until_ready(client, url, deadline_s=10)
        yield client


async def run(port: int, rounds: int, seconds: float) -> Report:
    report = Report()
    async with (
        reached(f"redis://127.0.0.1:{port}/0") as client,
        Cache(client, CacheOptions(prefix="bench:", timeout_s=1, ttl_s=3600)) as cache,
    ):
        await bytes_and_models(report, cache, port, rounds=rounds, seconds=seconds)
        await in_process(report, client, rounds, seconds)
        await messages(report, cache, client, rounds, seconds)
        await misses(report, cache, client)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--quick", action="store_true", help="short rounds, for a look")
    quick = parser.parse_args().quick
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory() as home:
        options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", home]
        server = subprocess.Popen(
            [str(server_binary()), *options], stdout=subprocess.DEVNULL, stdin=subprocess.DEVNULL
        )
        try:
            report = asyncio.run(run(port, 3 if quick else 9, 0.2 if quick else 0.5))
        finally:
            server.terminate()
            server.wait()
    print("\ntargets")
    for row in report.targets:
        print(
            f"  {'met   ' if row['met'] else 'MISSED'} {row['value']:12,.2f} ({row['limit']:,}) {row['target']}"
        )
    out = Path("out")
    out.mkdir(exist_ok=True)
    about = {"python": platform.python_version(), "cpus": os.cpu_count(), "load": os.getloadavg()}
    result = {"about": about, "figures": report.figures, "targets": report.targets}
    (out / "bench_cache.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
