"""A real Prometheus scrapes a fleet: each panel of the dashboards shows data, and the rules evaluate."""

from __future__ import annotations

import asyncio
import math
import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from arq.worker import func

from cache.connection.pool import PoolOptions, open_pool
from tests.support.engine import running
from tests.support.queues import queue_of
from tests.support.servers import free_port
from tests.support.wait import eventually
from tests.support.web import asking
from tests.web.test_alerts import RULES, alerts, answer_one, dashboard_expressions
from worker.errors import Permanent

pytestmark = pytest.mark.acceptance

CONFIGURATION = """
global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}}
rule_files: [{rules}]
scrape_configs:
  - job_name: letta
    static_configs: [targets: ["{target}"]]
"""


async def quick(ctx: dict[str, Any]) -> None: ...


async def fails(ctx: dict[str, Any]) -> None:
    raise Permanent("as asked")


def start(program: str, home: Path, target: str, port: int) -> subprocess.Popen[bytes]:
    configuration = home / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(rules=RULES, target=target))
    options = {
        "config.file": configuration,
        "storage.tsdb.path": home / "data",
        "web.listen-address": f"127.0.0.1:{port}",
    }
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    with (home / "log").open("wb") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


class Database:
    """Asks a Prometheus, which may still start."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def ask(self, path: str, **query: str) -> Any:
        try:
            reply = await self._client.get(path, params=query)
        except httpx.TransportError:
            return None
        return reply.json()["data"] if reply.status_code == 200 else None

    async def values(self, expr: str) -> list[float]:
        found = await self.ask("query", query=expr) or {"result": []}
        return [float(row["value"][1]) for row in found["result"]]

    async def without_data(self) -> set[str]:
        """Where an expression of a dashboard stands that gives no number."""
        return {
            where
            for where, expr in dashboard_expressions().items()
            if not any(map(math.isfinite, await self.values(expr)))
        }

    async def fired(self, alert: str) -> dict[str, str] | None:
        """The health of every rule, once this one has fired."""
        groups = (await self.ask("rules") or {"groups": []})["groups"]
        rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
        if not rules.get(alert, {}).get("alerts"):
            return None
        return {name: rule["health"] for name, rule in rules.items()}


@asynccontextmanager
async def prometheus(home: Path, target: str) -> AsyncIterator[Database]:
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is absent: install Debian's package prometheus")
    port = free_port()
    process = start(program, home, target, port)
    try:
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}/api/v1/", timeout=30, trust_env=False
        ) as client:
            yield Database(client)
    finally:
        process.kill()
        await asyncio.to_thread(process.wait)


async def test_every_panel_has_data_and_every_rule_evaluates(
    private_valkey_url: str, tmp_path: Path
) -> None:
    functions = [func(quick, name="quick"), func(fails, name="fails")]
    async with open_pool(private_valkey_url, PoolOptions(), name="test") as client:
        # Without a limit, the panel of the server's memory leaves its line out.
        await client.config_set("maxmemory", 10**9)
        queue = queue_of(client, "arq:")

        async def work() -> None:
            for name in ("quick", "fails"):
                await queue.enqueue(name)
            await answer_one(queue)
            for counter in ("hits", "misses", "window_hits", "message_hits"):
                await client.hincrby("lc:counters", counter, 5)

        async with (
            running(client, "arq:", functions),
            asking(queue) as web,
            prometheus(tmp_path, web.base_url.netloc.decode()) as database,
        ):
            await work()
            await eventually(lambda: database.values('letta_job_ends_total{outcome="dead"} > 0'))
            await work()  # a rate needs ends between two scrapes
            missing: set[str] = set()

            async def all_have_data() -> bool:
                nonlocal missing
                missing = await database.without_data()
                return not missing

            with suppress(AssertionError):
                await eventually(all_have_data)
            assert missing == set()
            health = await eventually(lambda: database.fired("LettaDeadLetters"))
            assert health == {rule["alert"]: "ok" for rule in alerts()}
