"""
A worker process for fault tests: `python -m tests.support.engine_process URL PREFIX LEDGER`.

Each run of a job appends lines to the ledger, a file outside Valkey:
`start|end job_id pid try`. A job's argument is the length of its run in seconds.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
LEASE_S = 2.0
TRIES = 5


class Ledger:
    """A file of lines that survive the death of their writer."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, *words: object) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            # One write in append mode: lines of several processes never mix.
            os.write(fd, (" ".join(map(str, words)) + "\n").encode())
        finally:
            os.close(fd)

    def lines(self) -> list[list[str]]:
        if not self.path.exists():
            return []
        return [line.split() for line in self.path.read_text().splitlines()]

    def of(self, kind: str) -> list[list[str]]:
        return [line for line in self.lines() if line[0] == kind]


def functions(ledger: Ledger) -> list[Any]:
    from arq.worker import func

    async def hold(ctx: dict[str, Any], seconds: float = 0) -> int:
        ledger.write("start", ctx["job_id"], os.getpid(), ctx["job_try"])
        await asyncio.sleep(seconds)
        ledger.write("end", ctx["job_id"], os.getpid(), ctx["job_try"])
        return os.getpid()

    async def block(ctx: dict[str, Any], seconds: float) -> int:
        """Block the event loop, which a job must not do."""
        ledger.write("start", ctx["job_id"], os.getpid(), ctx["job_try"])
        time.sleep(seconds)  # noqa: ASYNC251
        ledger.write("end", ctx["job_id"], os.getpid(), ctx["job_try"])
        return os.getpid()

    async def block_once(ctx: dict[str, Any], seconds: float) -> int:
        if any(line[1] == ctx["job_id"] for line in ledger.of("start")):
            return os.getpid()
        return await block(ctx, seconds)

    async def die(ctx: dict[str, Any]) -> None:
        ledger.write("start", ctx["job_id"], os.getpid(), ctx["job_try"])
        os.kill(os.getpid(), 9)

    async def fail_once(ctx: dict[str, Any]) -> int:
        ledger.write("start", ctx["job_id"], os.getpid(), ctx["job_try"])
        if ctx["job_try"] == 1:
            raise ValueError("the first time")
        ledger.write("end", ctx["job_id"], os.getpid(), ctx["job_try"])
        return os.getpid()

    async def follow(ctx: dict[str, Any], before: Any) -> int:
        """Run after another job, with its result."""
        return await hold(ctx)

    async def fail_always(ctx: dict[str, Any]) -> None:
        ledger.write("start", ctx["job_id"], os.getpid(), ctx["job_try"])
        raise ValueError("every time")

    return [
        func(hold, name="hold", timeout=3600),
        func(follow, name="follow"),
        func(block, name="block", timeout=3600),
        func(block, name="block_briefly", timeout=0.5),
        func(block_once, name="block_once", timeout=3600),
        func(die, name="die"),
        func(fail_once, name="fail_once"),
        func(fail_always, name="fail_always"),
    ]


def serve(url: str, prefix: str, ledger: str, lease_s: str = str(LEASE_S)) -> None:
    import structlog
    from arq.connections import ArqRedis

    # Rendering thousands of tracebacks would take more time than the jobs.
    structlog.configure(
        processors=[structlog.processors.TimeStamper(), structlog.processors.KeyValueRenderer()]
    )

    from cache.connection.pool import PoolOptions, build_client
    from worker.engine import EngineOptions, RetryPolicy, Worker

    async def main() -> None:
        client = build_client(
            url,
            PoolOptions(
                connect_timeout_s=1,
                socket_timeout_s=2,
                retries=1,
                sentinel_password=os.environ.get("SENTINEL_PASSWORD"),
            ),
            name="w",
            tag=prefix[:-1],
            client_class=ArqRedis,
        )
        worker = Worker(
            functions(Ledger(Path(ledger))),
            redis_pool=client,
            prefix=prefix,
            max_jobs=int(os.environ.get("MAX_JOBS", "8")),
            job_completion_wait=1,
            options=EngineOptions(
                lease_s=float(lease_s),
                poll_s=0.5,
                heartbeat_s=0.5,
                max_lost_leases=int(os.environ.get("MAX_LOST_LEASES", "3")),
                retry=RetryPolicy(max_tries=TRIES, base_s=0.05),
            ),
        )
        await worker.main()
        await worker.close()

    asyncio.run(main())


@contextmanager
def process(
    url: str, prefix: str, ledger: Ledger, *, lease_s: float = LEASE_S, **env: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run the worker as a process and kill it at the end. Its log is next to the ledger."""
    arguments = [url, prefix, str(ledger.path), str(lease_s)]
    log = ledger.path.with_suffix(".log")
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", "tests.support.engine_process", *arguments],
            cwd=ROOT,
            env={**os.environ, **env},
            stdout=output,
            stderr=output,
        )
    try:
        yield child
    finally:
        child.kill()
        child.wait()


if __name__ == "__main__":
    serve(*sys.argv[1:])
