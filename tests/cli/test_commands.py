"""The command line as an operator uses it: real processes, exit codes, errors of one line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.command_lines import commands
from tests.support.servers import free_port, run, valkey
from tests.support.wait import eventually_sync
from worker.cli.commands import main

pytestmark = pytest.mark.acceptance

BIN = Path(sys.executable).parent
LETTA = str(BIN / "letta-workers")
ARQ = str(BIN / "arq")


def environment(**values: str) -> dict[str, str]:
    return {**os.environ, **values}


def logged(log: Path, event: str, *, times: int = 1) -> None:
    """Wait for events in a log: cheaper than to ask a command again and again."""
    eventually_sync(lambda: log.read_text().count(event) >= times, deadline_s=100)


def letta(command: str, here: dict[str, str]) -> Result:
    """A command in this process, which is cheaper than one of its own."""
    done = CliRunner().invoke(main, command.split(), env=here)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def answer(command: str, here: dict[str, str]) -> Any:
    done = letta(f"{command} --json", here)
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


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
            started.wait(100)
        finally:
            if started.poll() is None:
                os.killpg(started.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    "command",
    [
        [LETTA, "run"],
        [sys.executable, "-m", "worker", "run"],
        [ARQ, "worker.WorkerSettings"],
        [ARQ, "--check", "worker.WorkerSettings"],
    ],
)
def test_a_wrong_setting_ends_a_process_with_2_and_one_line(command: list[str]) -> None:
    done = run(command, env=environment(LETTA_WORKER_COUNT="many"))
    assert_names_the_setting(done.returncode, done.stderr)


@pytest.mark.parametrize("command", ["run", "status", "health", "jobs list", "dead list", "web"])
def test_a_wrong_setting_ends_a_command_with_2_and_one_line(command: str) -> None:
    done = letta(command, {"LETTA_WORKER_COUNT": "many"})
    assert_names_the_setting(done.exit_code, done.stderr)


def assert_names_the_setting(code: int, errors: str) -> None:
    assert code == 2
    (line,) = errors.splitlines()
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
def test_an_unloadable_setting_ends_run_at_once(variable: str, value: str) -> None:
    done = run([LETTA, "run"], env=environment(**{variable: value}))
    assert done.returncode in {1, 2}
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert variable in done.stderr or value in done.stderr


@pytest.mark.parametrize("command", ["health", "status", "webhooks show msg_1", "batches flush"])
def test_an_absent_server_is_one_line_and_exit_1(command: str) -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    done = letta(command, {"LETTA_REDIS_URL": url})
    assert done.exit_code == 1
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stderr + done.stdout


def test_arq_s_check_of_an_absent_server_is_one_line_and_exit_1() -> None:
    url = f"redis://:hunter2@127.0.0.1:{free_port()}/0"
    done = run([ARQ, "--check", "worker.WorkerSettings"], env=environment(LETTA_REDIS_URL=url))
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "hunter2" not in done.stderr + done.stdout


def test_arqs_worker_waits_for_the_server(tmp_path: Path) -> None:
    log, port = tmp_path / "log", free_port()
    here = {"LETTA_REDIS_URL": f"redis://127.0.0.1:{port}/0"}
    with process([ARQ, "worker.WorkerSettings"], log, **here) as worker:
        eventually_sync(lambda: "redis.unreachable" in log.read_text(), deadline_s=100)
        with valkey(tmp_path / "server", port=port):
            eventually_sync(lambda: "worker.started" in log.read_text(), deadline_s=100)
            worker.send_signal(signal.SIGTERM)
            worker.wait(20)
    assert "Traceback" not in log.read_text()
    assert log.read_text().count("redis.unreachable") == 1


def test_workers_wait_for_the_server_and_log_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    url = f"redis://127.0.0.1:{free_port()}/0"
    with process([LETTA, "run", "--count", "1"], log, LETTA_REDIS_URL=url) as workers:
        eventually_sync(lambda: "redis.unreachable" in log.read_text(), deadline_s=100)
    assert workers.returncode == 0
    assert log.read_text().count("redis.unreachable") == 1
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize(
    ("command", "workers_started"),
    [([LETTA, "run", "--count", "2"], 2), ([ARQ, "worker.WorkerSettings"], 1)],
)
def test_check_and_health_report_whether_a_worker_runs(
    private_valkey_url: str, tmp_path: Path, command: list[str], workers_started: int
) -> None:
    log = tmp_path / "log"
    here = {"LETTA_REDIS_URL": private_valkey_url}

    def checks() -> tuple[int, int]:
        arq = run([ARQ, "--check", "worker.WorkerSettings"], env=environment(**here))
        ours = letta("health --json", here)
        assert json.loads(ours.stdout)["healthy"] is (ours.exit_code == 0)
        return arq.returncode, ours.exit_code

    assert checks() == (1, 1)
    with process(command, log, **here) as workers:
        logged(log, "worker.started", times=workers_started)
        eventually_sync(lambda: letta("health", here).exit_code == 0, deadline_s=100)
        eventually_sync(lambda: checks() == (0, 0), deadline_s=100)
        assert answer("batches flush", here) == {"batches": 0}
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
        eventually_sync(lambda: "webhook.died" in log.read_text(), deadline_s=100)
        shown = answer(f"webhooks show {sent}", here)
    assert shown["attempts"][0]["error"] == "target_forbidden"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    (died,) = [line for line in lines if line["event"] == "webhook.died"]
    assert died["job_id"] == f"webhook:{sent}"
    assert died["task"] == "deliver_webhook"
    assert died["try"] == 1
    assert died["worker_id"]
    assert died["level"] == "info"


def test_dead_letters_are_listed_retried_and_purged(
    private_valkey_url: str, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    here = {
        "LETTA_REDIS_URL": private_valkey_url,
        "LETTA_WORKER_FUNCTIONS": "tests.support.jobs:explode",
        "LETTA_WORKER_MAX_TRIES": "1",
    }

    def dead() -> list[dict[str, object]]:
        found: list[dict[str, object]] = answer("dead list", here)
        return found

    enqueue = (
        "import asyncio, worker\n"
        "async def main():\n"
        "    async with worker.open_queue() as queue:\n"
        "        await queue.enqueue('explode', job_id='boom')\n"
        "asyncio.run(main())"
    )
    with process([LETTA, "run", "--count", "1"], log, **here):
        assert run([sys.executable, "-c", enqueue], env=environment(**here)).returncode == 0
        logged(log, "job.died")
        (first,) = eventually_sync(dead, deadline_s=100)
        assert (first["id"], first["tries"]) == ("boom", 1)
        assert "as asked" in str(first["error"])
        assert answer("dead retry boom", here) == {"retried": 1}
        logged(log, "job.died", times=2)
        eventually_sync(lambda: [row for row in dead() if row["died_at"] != first["died_at"]])
        assert answer("dead purge --before 0s", here) == {"purged": 1}
        assert dead() == []
        missing = letta("dead retry boom", here)
        assert (missing.exit_code, len(missing.stderr.splitlines())) == (1, 1)


def test_any_arq_settings_class_runs_on_the_engine(private_valkey_url: str, tmp_path: Path) -> None:
    (tmp_path / "myapp.py").write_text(
        "from arq.connections import RedisSettings\n"
        "from cache.encoding import codec\n"
        "async def hello(ctx, name):\n"
        "    return f'hello {name}'\n"
        "class WorkerSettings:\n"
        "    functions = [hello]\n"
        "    job_serializer, job_deserializer = codec.encode, codec.decode\n"
        f"    redis_settings = RedisSettings(unix_socket_path={private_valkey_url[7:]!r})\n"
    )
    enqueue = (
        "import asyncio\n"
        "from arq import create_pool\n"
        "from cache.encoding import codec\n"
        "from myapp import WorkerSettings\n"
        "async def main():\n"
        "    pool = await create_pool(WorkerSettings.redis_settings,\n"
        "        job_serializer=codec.encode, job_deserializer=codec.decode)\n"
        "    job = await pool.enqueue_job('hello', 'Ada')\n"
        "    print(await job.result(timeout=100, poll_delay=0.05))\n"
        "    await pool.aclose()\n"
        "asyncio.run(main())"
    )
    here = {"PYTHONPATH": str(tmp_path)}
    command = [LETTA, "run", "--count", "1", "--settings", "myapp.WorkerSettings"]
    with process(command, tmp_path / "log", **here) as workers:
        done = run([sys.executable, "-c", enqueue], env=environment(**here))
        assert done.stdout.strip() == "hello Ada", done.stderr
    assert workers.returncode == 0
    wrong = run([LETTA, "run", "--settings", "myapp.hello"], env=environment(**here))
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (2, 1)


def test_the_cache_is_warmed_counted_and_invalidated(
    private_valkey_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "loaders.py").write_text("async def load(agent_id):\n    return {'id': agent_id}\n")
    monkeypatch.syspath_prepend(tmp_path)
    here = {"LETTA_REDIS_URL": private_valkey_url}

    assert answer("cache warm --loader loaders:load a1 a2", here)["warmed"] == 2
    assert answer("cache stats", here)["keys"]
    assert answer("cache invalidate a1 a2", here) == {"named": 2, "delivered": True}
    assert letta("cache invalidate", here).exit_code == 2


@pytest.mark.parametrize("command", dict(commands()))
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    done = letta(f"{command} --help", {})
    assert done.exit_code == 0
    assert "Example" in done.stdout


@pytest.mark.parametrize(
    "command",
    ["status", "endpoints", "webhooks endpoints", "dead list", "schedules", "batches list"],
)
def test_a_misspelled_variable_is_told_once(
    command: str, private_valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr("settings._warn", lambda event, **_: told.append(event))
    monkeypatch.setenv("LETTA_REDIS_URL", private_valkey_url)
    monkeypatch.setenv("LETTA_WORKER_CONT", "3")

    found = CliRunner().invoke(main, command.split())

    assert (found.exit_code, told) == (0, ["settings.unknown_variable"]), found.output
