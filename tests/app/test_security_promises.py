"""A real worker process keeps SECURITY.md's promises about stored and logged data."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from settings import load_settings
from tests.support.guides import ROOT
from tests.support.queues import open_queue, stores_of
from tests.support.servers import valkey
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import JobFailed
from worker.demo.serving import running

pytestmark = pytest.mark.acceptance

KEY = "sk-marked-provider-key"
ARGUMENT = "marked-argument"
JOBS = """
async def fail(ctx, secret):
    raise RuntimeError("the job failed")
"""
BODY = {"model": "m", "messages": [{"role": "user", "content": "marked-prompt"}]}


@contextmanager
def worker_process(home: Path, **env: str) -> Iterator[Path]:
    """Run a worker in `home` and drain it at the end; yield its log file."""
    (home / "jobs.py").write_text(JOBS, encoding="utf-8")
    log = home / "log"
    here = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "LETTA_WORKER_FUNCTIONS": "jobs:fail",
        "LETTA_WORKER_LOG_LEVEL": "DEBUG",
        "LETTA_WORKER_LOG_FORMAT": "json",
        "LETTA_WORKER_MAX_TRIES": "1",
        "LETTA_OPENAI_API_KEY": KEY,
        **env,
    }
    command = [sys.executable, "-m", "worker", "run", "--count", "1"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=home, env=here, stdout=out, stderr=out)
    try:
        yield log
    finally:
        process.terminate()
        assert process.wait(60) == 0, log.read_text(encoding="utf-8")


async def everything(url: str) -> bytes:
    """Return all keys and values of a server."""
    client = Redis.from_url(url, protocol=2)
    found: list[Any] = []
    async for key in client.scan_iter():
        kind = (await client.type(key)).decode()
        found.append(key)
        match kind:
            case "string":
                found.append(await client.get(key))
            case "hash":
                found.extend((await client.hgetall(key)).items())
            case "list":
                found.extend(await client.lrange(key, 0, -1))
            case "set":
                found.extend(await client.smembers(key))
            case "zset":
                found.extend(await client.zrange(key, 0, -1))
            case "stream":
                found.extend(await client.xrange(key))
            case _:
                pytest.fail(f"{key!r} is of an unknown type: {kind}")
    await client.aclose()
    return repr(found).encode()


async def test_neither_keys_nor_arguments_are_stored_or_logged(tmp_path: Path) -> None:
    with (
        valkey(tmp_path / "valkey") as port,
        running("worker.demo.openai_server") as provider,
        worker_process(
            tmp_path,
            LETTA_REDIS_URL=(url := f"redis://127.0.0.1:{port}/0"),
            LETTA_OPENAI_BASE_URL=f"{provider}/v1",
            LETTA_LLM_ALLOW_CIDRS="127.0.0.0/8",
        ) as log,
    ):
        async with open_queue(load_settings(redis_url=url)) as queue:
            job = await queue.enqueue("fail", ARGUMENT)
            asked = await queue.submit_llm_request(
                BODY, provider="openai", endpoint="/v1/chat/completions", urgent=True
            )
            with pytest.raises(JobFailed):
                await job.result(timeout_s=200)
            await queue.llm_result(asked, timeout_s=200)
        stored = await everything(url)
    logged = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert any(line["event"] == "job.died" for line in logged)
    assert KEY.encode() not in stored
    # The dead letter keeps its arguments, so the search does find what is stored.
    assert ARGUMENT.encode() in stored
    for secret in (KEY, ARGUMENT, "marked-prompt"):
        assert secret not in json.dumps(logged)


async def test_a_provider_on_a_private_network_is_refused(tmp_path: Path) -> None:
    with (
        valkey(tmp_path / "valkey") as port,
        running("worker.demo.openai_server") as provider,
        worker_process(
            tmp_path,
            LETTA_REDIS_URL=(url := f"redis://127.0.0.1:{port}/0"),
            LETTA_OPENAI_BASE_URL=f"{provider}/v1",
        ),
    ):
        async with open_queue(load_settings(redis_url=url)) as queue:
            asked = await queue.submit_llm_request(
                BODY, provider="openai", endpoint="/v1/chat/completions", urgent=True
            )
            with pytest.raises(JobFailed, match=r"forbidden|public"):
                await queue.llm_result(asked, timeout_s=200)


async def test_a_sealed_secret_opens_for_no_other_delivery(private_valkey_url: str) -> None:
    settings = quick_settings(
        private_valkey_url, webhook_encryption_key=base64.b64encode(b"k" * 32).decode()
    )
    async with open_queue(settings) as queue:
        ids = [
            await queue.send_webhook("http://127.0.0.1:1/", {}, event_type="x", bearer=bearer)
            for bearer in ("first", "second")
        ]
        sealed = [await stores_of(queue).client.hget(f"arq:webhook:{id_}", "secret") for id_ in ids]
        for id_, other in zip(ids, reversed(sealed), strict=True):
            await stores_of(queue).client.hset(f"arq:webhook:{id_}", "secret", other)
        async with running_worker(settings):
            for id_ in ids:
                # An attempt under way reads as interrupted until its outcome is recorded.
                async def tried(id_: str = id_) -> str | None:
                    attempts = (await queue.delivery(id_)).attempts
                    error = attempts[0].error if attempts else "interrupted"
                    return error if error != "interrupted" else None

                assert await eventually(tried) == "secret_unusable"


def test_every_promise_names_a_test_that_exists() -> None:
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    promised = page.partition("## What is promised")[2].partition("\n## ")[0]
    rows = [row for row in promised.splitlines() if row.startswith("| ") and "---" not in row]
    rows = [row for row in rows if not row.startswith("| promise |")]
    assert len(rows) > 10
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)`", row)
        assert named, row
        assert [path for path in named if not has_tests(path)] == []


def has_tests(path: str) -> bool:
    file = ROOT / path
    return file.is_file() and "def test_" in file.read_text(encoding="utf-8")


def test_every_file_that_the_threat_model_names_exists() -> None:
    model = (ROOT / "docs" / "decisions" / "0015-threat-model.md").read_text(encoding="utf-8")
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:[\w.-]+/)+[\w.-]*)`", model + policy))
    assert len(named) > 20
    assert [path for path in sorted(named) if not (ROOT / path).exists()] == []
    tests = {path for path in named if path.startswith("tests/")}
    assert [path for path in sorted(tests) if not has_tests(path)] == []


def test_every_test_of_security_is_named_by_a_promise() -> None:
    """A protection without a promise is not known to those who rely on it."""
    policy = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    model = (ROOT / "docs" / "decisions" / "0015-threat-model.md").read_text(encoding="utf-8")
    found = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_security_*.py")]
    assert [str(path) for path in sorted(found) if str(path) not in policy + model] == []
