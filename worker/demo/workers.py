"""Starts the demo's worker processes with the page beside them, and waits until they are ready."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_START_DEADLINE_S, _STOP_DEADLINE_S = 50.0, 15.0
_LOOK_EVERY_S = 0.1


def demo_environment(url: str, provider: str) -> dict[str, str]:
    """Return settings with quick retries and polls, so that the demo takes seconds, not minutes."""
    return {
        "LETTA_REDIS_URL": url,
        "LETTA_CACHE_REDIS_URL": url,
        "LETTA_WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8",
        "LETTA_WEBHOOK_RETRY_BASE_S": "0.5",
        "LETTA_WEBHOOK_BREAKER_OPEN_S": "0.5",
        "LETTA_WEBHOOK_SECRET": "whsec_bGV0dGEtcmVkaXMtZGVtby1zZWNyZXQtMTIzNDU2",
        "LETTA_LLM_ALLOW_CIDRS": "127.0.0.0/8",
        "LETTA_OPENAI_BASE_URL": f"{provider}/v1",
        "LETTA_LLM_BATCH_MAX_REQUESTS": "30",
        "LETTA_LLM_BATCH_MAX_AGE_S": "30",
        "LETTA_LLM_BATCH_CRON": "*/2 * * * * *",
        "LETTA_LLM_POLL_INTERVAL_S": "0.3",
        "LETTA_WORKER_LOG_FORMAT": "json",
        "LETTA_WEB_LISTEN": "127.0.0.1:0",
    }


@contextmanager
def workers(environment: dict[str, str], count: int, log: Any) -> Iterator[None]:
    """Run `letta-workers run` as an operator does, and stop it at the end."""
    process = subprocess.Popen(  # noqa: S603  (our own module)
        [sys.executable, "-P", "-m", "letta_redis.worker", "run", "--count", str(count)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for_workers(log: str, count: int) -> None:
    """Wait until every process is ready, so that latencies do not include its imports."""
    _wait_for(log, lambda lines: sum(b"supervisor.child_ready" in line for line in lines) >= count)


def page_address(log: str) -> str:
    """Wait until the page listens, and return its URL."""
    started = b'"web.started"'
    lines = _wait_for(log, lambda lines: any(started in line for line in lines))
    (line,) = [line for line in lines if started in line]
    return f"http://{json.loads(line)['address']}/"


def _wait_for(log: str, is_there: Callable[[list[bytes]], bool]) -> list[bytes]:
    deadline = time.monotonic() + _START_DEADLINE_S
    while True:
        # A line that is written now has no end yet.
        *lines, _ = Path(log).read_bytes().split(b"\n")
        if is_there(lines):
            return lines
        if time.monotonic() > deadline:
            raise RuntimeError("the workers did not start:\n" + Path(log).read_text()[-2000:])
        time.sleep(_LOOK_EVERY_S)
