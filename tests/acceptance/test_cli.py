"""The command line as an operator meets it: real processes, exit codes, one clear line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.servers import free_port, run
from tests.support.wait import eventually_sync

BIN = Path(sys.executable).parent
LETTA = str(BIN / "letta-workers")
ARQ = str(BIN / "arq")


def environment(**values: str) -> dict[str, str]:
    return {**os.environ, **values}


@contextmanager
def process(command: list[str], log: Path, **values: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command in the background, drained at the end."""
    with log.open("wb") as output:
        started = subprocess.Popen(
            command, env=environment(**values), stdout=output, stderr=output, start_new_session=True
        )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(20)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "command",
    [
        [LETTA, "run"],
        [LETTA, "status"],
        [LETTA, "health"],
        [sys.executable, "-m", "worker", "run"],
        [ARQ, "worker.WorkerSettings"],
        [ARQ, "--check", "worker.WorkerSettings"],
    ],
)
def test_a_wrong_setting_ends_with_2_and_one_line(command: list[str]) -> None:
    done = run(command, env=environment(LETTA_WORKER_COUNT="many"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("LETTA_WORKER_COUNT: ")
    assert "accepted: int, >= 1, <= 256" in line


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("LETTA_WORKER_FUNCTIONS", "no.such.module:job"),
        ("LETTA_WORKER_FUNCTIONS", "tests.support.jobs:no_such_job"),
        ("LETTA_WORKER_FUNCTIONS", "tests.support.jobs:not_a_coroutine"),
        ("LETTA_WORKER_CRONS", "tests.support.jobs:add=61 * * * *"),
        ("LETTA_LLM_BATCH_CRON", "* * * * 9"),
        ("LETTA_REDIS_URL", "embedded:///proc/nowhere"),
    ],
)
def test_what_cannot_be_loaded_ends_run_at_once(variable: str, value: str) -> None:
    done = run([LETTA, "run"], env=environment(**{variable: value}))
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert variable in done.stderr or value in done.stderr


@pytest.mark.parametrize("command", ["health", "status", "webhooks show msg_1", "batches flush"])
def test_an_absent_server_is_one_line_and_exit_1(command: str) -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    done = run([LETTA, *command.split()], env=environment(LETTA_REDIS_URL=url))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stderr + done.stdout


def test_workers_wait_for_an_absent_server_say_so_once_and_end_cleanly(tmp_path: Path) -> None:
    log = tmp_path / "log"
    url = f"redis://127.0.0.1:{free_port()}/0"
    with process([LETTA, "run", "--count", "1"], log, LETTA_REDIS_URL=url) as workers:
        eventually_sync(lambda: "redis.unreachable" in log.read_text(), deadline_s=30)
    assert workers.returncode == 0
    assert log.read_text().count("redis.unreachable") == 1
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    "command", [[LETTA, "run", "--count", "2"], [ARQ, "worker.WorkerSettings"]]
)
def test_check_and_health_say_whether_a_worker_runs(
    private_valkey_url: str, tmp_path: Path, command: list[str]
) -> None:
    log = tmp_path / "log"
    here = {"LETTA_REDIS_URL": private_valkey_url}

    def checks() -> tuple[int, int]:
        arq = run([ARQ, "--check", "worker.WorkerSettings"], env=environment(**here))
        ours = run([LETTA, "health", "--json"], env=environment(**here))
        assert json.loads(ours.stdout)["healthy"] is (ours.returncode == 0)
        return arq.returncode, ours.returncode

    assert checks() == (1, 1)
    with process(command, log, **here) as workers:
        eventually_sync(lambda: checks() == (0, 0), deadline_s=30)
        done = run([LETTA, "batches", "flush", "--json"], env=environment(**here))
        assert json.loads(done.stdout) == {"batches": 0}
    assert workers.returncode == 0, log.read_text()
    assert "Traceback" not in log.read_text()
    assert checks() == (1, 1)


def test_logs_are_json_with_job_task_try_and_worker(
    private_valkey_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    here = {
        "LETTA_REDIS_URL": private_valkey_url,
        "LETTA_WORKER_LOG_LEVEL": "INFO",
        "LETTA_WEBHOOK_MAX_ATTEMPTS": "1",
    }
    send = (
        "import asyncio, worker\n"
        "async def main():\n"
        "    async with worker.open_queue() as queue:\n"
        "        print(await queue.send_webhook('http://127.0.0.1:1/', {}, event_type='x'))\n"
        "asyncio.run(main())"
    )
    with process([LETTA, "run", "--count", "1"], log, **here):
        sent = run([sys.executable, "-c", send], env=environment(**here)).stdout.strip()
        eventually_sync(lambda: "webhook.died" in log.read_text(), deadline_s=30)
        shown = run([LETTA, "webhooks", "show", sent, "--json"], env=environment(**here))
    assert json.loads(shown.stdout)["attempts"][0]["error"] == "target_forbidden"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (died,) = [line for line in lines if line["event"] == "webhook.died"]
    assert died["job_id"] == f"webhook:{sent}"
    assert died["task"] == "deliver_webhook"
    assert died["try"] == 1
    assert died["worker_id"]
    assert died["level"] == "info"


@pytest.mark.parametrize(
    "command", ["run", "demo", "health", "status", "webhooks show", "batches flush"]
)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    done = run([LETTA, *command.split(), "--help"])
    assert done.returncode == 0
    assert "Examples:" in done.stdout
