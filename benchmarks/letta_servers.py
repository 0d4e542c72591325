"""Two real Letta servers, one of them with the plug-in, for bench_letta.py."""

from __future__ import annotations

import asyncio
import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import httpx

from tests.letta.postgres import Postgres
from tests.letta.processes import Server, letta_server

AGENTS, READS_A_MESSAGE = 20, 19
# Calls whose statements are counted.
COUNTED = 3
_STATEMENT = re.compile(r"^(\S+) LOG:  (?:execute [^:]+|statement): (.*)", re.MULTILINE)
_NOT_COUNTED = re.compile(r"BEGIN|COMMIT|ROLLBACK|;|SET |SHOW |.*pg_catalog|.*pg_type", re.I)


class Side:
    """One server, with its database and its agents."""

    def __init__(self, server: Server, database: str) -> None:
        self.database = database
        self.client = server.client()
        self.url = server.url
        self._pid = server.process.pid
        self.agents = [self._agent(n) for n in range(AGENTS)]

    def cpu_s(self) -> float:
        """Seconds of CPU that the server has taken so far."""
        fields = Path(f"/proc/{self._pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def _agent(self, number: int) -> str:
        blocks = [{"label": f"block{n}", "value": "what is known of it. " * 20} for n in range(5)]
        body = {
            "name": f"agent {number}",
            "model": "openai-proxy/gpt-4o-mini",
            "embedding": "openai/text-embedding-3-small",
            "memory_blocks": blocks,
            "include_base_tools": False,
            "tool_ids": self._tools(),
        }
        answer = self.client.post("/v1/agents/", json=body).raise_for_status()
        return str(answer.json()["id"])

    def _tools(self) -> list[str]:
        found = self.client.get("/v1/tools/?limit=10").raise_for_status().json()
        return [tool["id"] for tool in found]

    def get(self) -> None:
        self.client.get(f"/v1/agents/{self.agents[0]}").raise_for_status()

    def step(self) -> None:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        path = f"/v1/agents/{self.agents[0]}/messages"
        self.client.post(path, json=body).raise_for_status()


class Pair:
    """Both servers, until the block ends."""

    def __init__(
        self, home: Path, postgres: Postgres, valkey: str, models: str, *, pooled: bool
    ) -> None:
        self._home = home
        self._postgres = postgres
        self._valkey = valkey
        self._environment = {
            "LETTA_DISABLE_SQLALCHEMY_POOLING": str(not pooled).lower(),
            "LETTA_ENCRYPTION_KEY": "a key of the benchmark",
            "OPENAI_API_KEY": "none",
            "OPENAI_BASE_URL": models,
        }
        self._query = "?ssl=disable" if pooled else ""
        self._stack = ExitStack()
        self.sides: dict[str, Side] = {}

    def __enter__(self) -> Self:
        for name in ("plain", "plugin"):
            database = self._postgres.create()
            home = self._home / database
            home.mkdir()
            server = letta_server(
                home,
                plain=name == "plain",
                LETTA_PG_URI=self._postgres.uri(database) + self._query,
                LETTA_REDIS_URL=self._valkey,
                **self._environment,
            )
            self.sides[name] = Side(self._stack.enter_context(server), database)
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def compared(self, times: int) -> dict[str, Any]:
        """GET of an agent and a step, in turns: medians in ms, and statements."""
        calls: dict[str, Callable[[Side], None]] = {"get": Side.get, "step": Side.step}
        found: dict[str, Any] = {name: {} for name in self.sides}
        for what, call in calls.items():
            for side in self.sides.values():
                for _ in range(3):
                    call(side)
            spent = self._in_turns(call, times)
            for name, side in self.sides.items():
                found[name][f"{what}_ms"] = statistics.median(spent[name])
                found[name][f"{what}_statements"] = self._statements(side, call)
        return found

    def _in_turns(self, call: Callable[[Side], None], times: int) -> dict[str, list[float]]:
        spent: dict[str, list[float]] = {name: [] for name in self.sides}
        for _ in range(times):
            for name, side in self.sides.items():
                started = time.perf_counter()
                call(side)
                spent[name].append((time.perf_counter() - started) * 1000)
        return spent

    def _statements(self, side: Side, call: Callable[[Side], None]) -> float:
        """The statements of one call: the median of COUNTED."""
        log = self._home / "postgres" / "data" / "log"
        counted = []
        self._log_statements("all")
        for _ in range(COUNTED):
            start = log.stat().st_size
            call(side)
            time.sleep(1.0)  # what the server does in the background belongs to it
            lines = log.read_bytes()[start:].decode(errors="replace")
            counted.append(_count(lines, side.database))
        self._log_statements("none")
        return statistics.median(counted)

    def _log_statements(self, which: str) -> None:
        self._postgres.execute("ALTER SYSTEM SET log_line_prefix = '%d '")
        self._postgres.execute(f"ALTER SYSTEM SET log_statement = '{which}'")
        self._postgres.execute("SELECT pg_reload_conf()")
        time.sleep(1.0)  # each connection reads it at its next command

    def loaded(self, seconds: float, clients: int) -> dict[str, Any]:
        """Many clients at once, one server after the other."""
        return {name: self._load(side, seconds, clients) for name, side in self.sides.items()}

    def _load(self, side: Side, seconds: float, clients: int) -> dict[str, float]:
        opened = self._sessions(side)
        cpu = side.cpu_s()
        started = time.monotonic()
        load = _load(side, seconds, clients, lambda: self._connections(side))
        spent, errors, most = asyncio.run(load)
        # Longer than `seconds`: the last requests are waited for.
        took_s = time.monotonic() - started
        for kind, times in errors.items():
            print(f"{times} times: {kind}")
        return {
            "requests_per_s": len(spent) / took_s,
            "p50_ms": statistics.median(spent) * 1000,
            "p99_ms": sorted(spent)[int(len(spent) * 0.99)] * 1000,
            "errors": errors.total(),
            "cpu_ms_a_request": (side.cpu_s() - cpu) / len(spent) * 1000,
            "connections_at_once": most,
            "connections_opened": self._sessions(side) - opened,
        }

    def _connections(self, side: Side) -> int:
        query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{side.database}'"
        return int(self._postgres.execute(query)[0][0])

    def _sessions(self, side: Side) -> int:
        query = f"SELECT sessions FROM pg_stat_database WHERE datname = '{side.database}'"
        return int(self._postgres.execute(query)[0][0])


def _count(log: str, database: str) -> int:
    found = _STATEMENT.findall(log)
    return sum(name == database and not _NOT_COUNTED.match(text) for name, text in found)


async def _load(
    side: Side, seconds: float, clients: int, connections: Callable[[], int]
) -> tuple[list[float], Counter[str], int]:
    """Durations of the requests, how many failed and how, and the most connections seen at once."""
    spent: list[float] = []
    errors: Counter[str] = Counter()
    most = 0
    end = time.monotonic() + seconds

    async def client(number: int) -> None:
        path = f"/v1/agents/{side.agents[number % AGENTS]}"
        sent = number
        while time.monotonic() < end:
            sent += 1
            is_message = sent % (READS_A_MESSAGE + 1) == 0
            started = time.perf_counter()
            try:
                if is_message:
                    body = {"messages": [{"role": "user", "content": "hello"}]}
                    answer = await http.post(f"{path}/messages", json=body)
                else:
                    answer = await http.get(path)
                if not answer.is_success:
                    errors[f"{answer.request.method} {answer.status_code} {answer.text[:200]}"] += 1
            except httpx.HTTPError as exc:
                errors[f"{'POST' if is_message else 'GET'} {type(exc).__name__}"] += 1
            spent.append(time.perf_counter() - started)

    async def watch() -> None:
        nonlocal most
        while time.monotonic() < end:
            most = max(most, await asyncio.to_thread(connections))
            await asyncio.sleep(0.5)

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=side.url, timeout=120, limits=limits) as http:
        await asyncio.gather(*map(client, range(clients)), watch())
    return spent, errors, most
