"""`arq package.module.Class` runs the engine: signals, --burst, --check, exit codes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from arq.connections import ArqRedis

from tests.support.wait import eventually

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
MODULE = """
import asyncio
from arq.connections import ArqRedis, RedisSettings
from cache.encoding import codec
from cache.connection.pool import PoolOptions, build_client
from worker.engine import EngineOptions
from worker.engine.bridge import settings_class

URL = {url!r}

async def double(ctx, n):
    return 2 * n

async def hang(ctx):
    await ctx["redis"].incr("started")
    await asyncio.Event().wait()

async def tidy(ctx):
    await ctx["redis"].incr("tidied")

WorkerSettings = settings_class(
    dict(
        functions=[double, hang],
        redis_pool=build_client(URL, PoolOptions(), name="w", client_class=ArqRedis),
        redis_settings=RedisSettings(unix_socket_path=URL.removeprefix("unix://")),
        health_check_interval=1,
        job_completion_wait={grace},
        on_shutdown=tidy,
    ),
    engine=dict(options=EngineOptions(lease_s=2.0)),
)
"""


def command(home: Path, client: ArqRedis, *options: str, grace: int = 0) -> subprocess.Popen[bytes]:
    path = client.connection_pool.connection_kwargs["path"]
    (home / "theirs.py").write_text(MODULE.format(url=f"unix://{path}", grace=grace))
    return subprocess.Popen(
        [sys.executable, "-m", "arq", "theirs.WorkerSettings", *options],
        cwd=home,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


async def ended(process: subprocess.Popen[bytes]) -> tuple[int, str]:
    output, _ = await asyncio.to_thread(process.communicate, None, 60)
    return process.returncode, output.decode()


async def test_burst_runs_what_waits_and_exits_with_0(arq: ArqRedis, tmp_path: Path) -> None:
    handle = await arq.enqueue_job("double", 4)
    assert handle is not None
    code, output = await ended(command(tmp_path, arq, "--burst"))
    assert code == 0, output
    assert await handle.result(timeout=10) == 8
    assert await arq.get("tidied") == b"1"


async def test_term_gives_the_job_back_uncharged_and_check_follows(
    arq: ArqRedis, tmp_path: Path
) -> None:
    await arq.enqueue_job("hang", _job_id="a")
    process = command(tmp_path, arq)
    try:
        await eventually(lambda: arq.get("started"), deadline_s=60)
        await eventually(lambda: arq.exists("arq:queue:health-check"))
        check = command(tmp_path, arq, "--check")
        assert (await ended(check))[0] == 0
        process.send_signal(signal.SIGTERM)
        code, output = await ended(process)
    finally:
        process.kill()
        process.wait()
    assert code == 0, output
    assert await arq.exists("arq:in-progress:a", "arq:retry:a") == 0
    assert await arq.zscore("arq:queue", "a") is not None
    assert await arq.exists("arq:job:a")
    assert (await ended(command(tmp_path, arq, "--check")))[0] == 1


async def test_a_second_term_ends_the_grace(arq: ArqRedis, tmp_path: Path) -> None:
    await arq.enqueue_job("hang", _job_id="a")
    process = command(tmp_path, arq, grace=600)
    try:
        await eventually(lambda: arq.get("started"), deadline_s=60)
        worker: Any = (await eventually(lambda: arq.zrange("arq:workers", 0, -1)))[0]
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: _drains(arq, worker), deadline_s=60)
        process.send_signal(signal.SIGTERM)
        code, output = await ended(process)
    finally:
        process.kill()
        process.wait()
    assert code == 0, output
    assert await arq.exists("arq:in-progress:a") == 0


async def _drains(client: Any, worker: bytes) -> bool:
    state = await client.get(b"arq:worker:" + worker)
    return state is not None and b'"draining": true' in state
