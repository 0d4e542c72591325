"""The compose file as a running project: started in order, crashed, stopped and removed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.containers.engine import Engine
from tests.support.wait import eventually_sync

HERE = Path(__file__).parent
COMPOSE = HERE.parents[1] / "compose"
OPS = HERE.parents[1] / "ops"
BACKUP = OPS / "backup"
PROJECT = "letta-redis-test"
SERVICES = ("valkey-queue", "valkey-cache", "valkey-letta", "letta", "letta-workers")
# With compose/single.yaml.
SHARING = tuple(name for name in SERVICES if name != "valkey-cache")
OBSERVING = ("letta-web", "prometheus")
OUTSIDE = ("outside",)
DEADLINE_S = 240.0
# What an operator writes into compose/.env; quick retries and batches, so that a drill takes minutes.
SETTINGS = {
    "VALKEY_IMAGE": "localhost/valkey/valkey:8-alpine",
    "PROMETHEUS_IMAGE": "localhost/prom/prometheus:v3.5.0",
    "LETTA_WORKER_COUNT": "2",
    "LETTA_WORKER_FUNCTIONS": "drill_jobs:hold",
    "LETTA_WEBHOOK_ALLOW_HOSTS": "outside",
    "LETTA_WEBHOOK_RETRY_BASE_S": "0.5",
    "LETTA_WEBHOOK_BREAKER_OPEN_S": "0.5",
    "LETTA_OPENAI_BASE_URL": "http://outside:8001/v1",
    "LETTA_OPENAI_API_KEY": "of the drill",
    "LETTA_LLM_ALLOW_CIDRS": "10.0.0.0/8",
    "LETTA_LLM_BATCH_MAX_REQUESTS": "20",
    "LETTA_LLM_BATCH_CRON": "*/2 * * * * *",
    "LETTA_LLM_POLL_INTERVAL_S": "0.5",
}
_JOB = '''
import asyncio

async def hold(ctx, seconds):
    """Runs for a while, so that a stop has something to wait for."""
    await asyncio.sleep(seconds)
    return "held"
'''


class Stack:
    """A copy of compose/ in a directory of its own, with its own secrets, settings and data."""

    def __init__(self, engine: Engine, home: Path, *, above: str | None = None) -> None:
        self.engine = engine
        self.home = home
        self.folder = home / "compose"
        shutil.copytree(COMPOSE, self.folder, ignore=shutil.ignore_patterns("secrets", ".env"))
        shutil.copytree(OPS, home / "ops")
        subprocess.run([self.folder / "make_secrets.sh"], check=True, capture_output=True)
        (self.folder / "jobs" / "drill_jobs.py").write_text(_JOB)
        lines = [f"{name}={value}\n" for name, value in SETTINGS.items()]
        (self.folder / ".env").write_text("".join(lines))
        for data in ("redis", "pgdata"):
            (home / ".letta" / ".persist" / data).mkdir(parents=True)
        self.files = [self.folder / "compose.yaml", HERE / "override.yaml"]
        subprocess.run([self.folder / "make_certificates.sh"], check=True, capture_output=True)
        if above is not None:
            self.files.append(self.folder / above)

    def compose(self, *arguments: str) -> str:
        profile = ("--profile", "observability")
        return self.engine.compose(self.files, self.home, "-p", PROJECT, *profile, *arguments)

    def up(self, services: Sequence[str] = (*SERVICES, *OBSERVING)) -> None:
        """Start each service when what it needs is healthy. Timers of health checks want systemd."""
        for name in (*OUTSIDE, *services):
            self.compose("up", "--detach", "--no-build", "--no-deps", name)
            if name not in OUTSIDE:
                self.wait_healthy(name)

    def container(self, service: str) -> str:
        return f"{PROJECT}_{service}_1"

    def healthy(self, service: str) -> bool:
        return self.engine.succeeds("healthcheck", "run", self.container(service))

    def wait_healthy(self, service: str) -> float:
        """Return after how many seconds the service passed its own health check."""
        start = time.monotonic()
        eventually_sync(lambda: self.healthy(service), deadline_s=DEADLINE_S)
        return time.monotonic() - start

    def runs(self, service: str, *command: str) -> bool:
        """Whether a command inside a container succeeds."""
        return self.engine.succeeds("exec", self.container(service), *command)

    def inspect(self, service: str) -> dict[str, Any]:
        (found,) = json.loads(self.engine.podman("inspect", self.container(service)))
        return dict(found)

    def crash(self, service: str) -> float:
        """
        Kill all processes of a container from outside; wait until its restart policy has brought it back.

        Returns the seconds until it was healthy again.
        """
        before = self.inspect(service)["State"]
        start = time.monotonic()
        # The first process of a container takes the others with it.
        os.kill(before["Pid"], signal.SIGKILL)
        eventually_sync(lambda: self._started_again(service, before["Pid"]), deadline_s=DEADLINE_S)
        self.wait_healthy(service)
        return time.monotonic() - start

    def _started_again(self, service: str, pid: int) -> bool:
        state = self.inspect(service)["State"]
        return bool(state["Running"] and state["Pid"] not in (0, pid))

    def stop(self, service: str) -> tuple[float, int]:
        """Stop a service as an operator does. Return the seconds that it took, and its exit code."""
        start = time.monotonic()
        self.compose("stop", service)
        return time.monotonic() - start, int(self.inspect(service)["State"]["ExitCode"])

    def grace_s(self, service: str) -> float:
        loaded = yaml.safe_load((self.folder / "compose.yaml").read_text())
        text = str(loaded["services"][service]["stop_grace_period"])
        return float(text.partition(":-")[2].rstrip("}").rstrip("s") or text.rstrip("s"))

    def lose_the_disk(self) -> int:
        """Back the queue's server up, kill it, remove its data and restore it. Return the backup's size."""
        name, data = self.container("valkey-queue"), self.home / ".letta" / ".persist" / "redis"
        backup = self.home / "backup"
        password = (self.folder / "secrets" / "valkey_operator_password").read_text().strip()
        cli = f"podman exec -e REDISCLI_AUTH {name} valkey-cli --user operator"
        self.engine.script(BACKUP / "backup.sh", backup, VALKEY_CLI=cli, REDISCLI_AUTH=password)
        self.engine.podman("stop", "--time", "0", name)
        for path in data.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.engine.script(BACKUP / "restore.sh", backup, data)
        self.engine.podman("start", name)
        self.wait_healthy("valkey-queue")
        return backup.stat().st_size

    def log(self, service: str) -> str:
        return self.engine.log(self.container(service))

    def down(self) -> None:
        self.compose("down", "--volumes", "--timeout", "10")
