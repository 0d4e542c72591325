"""
Takes the screenshots of docs/images from a running fleet: `make screenshots MINUTES=12`.

Workers, receiver and LLM provider are those of the demo, with jobs that take their time and fail
now and then. After some minutes of work a headless Chromium opens the pages. All that the pictures
show has happened. Needs Chromium; pngquant, if it is there, makes the files smaller.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from cache.connection import embedded  # noqa: E402
from settings import load_settings  # noqa: E402
from tests.support.browser import browsing  # noqa: E402
from tests.support.wait import eventually  # noqa: E402
from worker import JobQueue, Permanent, Priority, Transient, call, open_queue  # noqa: E402
from worker.demo.serving import running  # noqa: E402
from worker.demo.workers import (  # noqa: E402
    demo_environment,
    page_address,
    wait_for_workers,
    workers,
)

CHAT = "/v1/chat/completions"
MODELS = ("gpt-4o-mini", "gpt-4o")
GROUP = f"/group?provider=openai&endpoint={CHAT}&model={MODELS[0]}&range=1h"


class Shot(NamedTuple):
    """One picture. Without a height it has the whole page."""

    name: str
    path: str
    width: int = 1280
    height: int | None = 800


SHOTS = (
    Shot("overview-light", "/", 1200, None),
    Shot("overview-narrow", "/", 390, None),
    Shot("dead-dark", "/dead", 1200),
    Shot("history-dark", "/history?function=send_mail", 1200),
    Shot("schedules-light", "/schedules"),
    Shot("llm-light", "/batches"),
    Shot("workers-dark", "/workers"),
    Shot("group-dark", GROUP, 1280, None),
    Shot("endpoints-dark", "/endpoints"),
    Shot("change-light", "/change?action=run&state=deferred&function=send_mail"),
)


# -- the jobs ---------------------------------------------------------------------


async def send_mail(ctx: dict[str, Any], to: str) -> None:
    await asyncio.sleep(random.lognormvariate(-2, 0.8))
    if random.random() < 0.03:
        raise Transient("the mail server is busy: 421 try again later")
    if random.random() < 0.01:
        raise Permanent(f"550 no such mailbox: {to}")


async def index_files(ctx: dict[str, Any], folder: int) -> None:
    await asyncio.sleep(random.uniform(2, 30))
    if random.random() < 0.05:
        raise Permanent(f"folder {folder} has no readable file")


async def summarize(ctx: dict[str, Any], conversation: int) -> None:
    await asyncio.sleep(random.lognormvariate(-1, 0.5))
    if random.random() < 0.01:
        raise ValueError(f"conversation {conversation} has no messages")


async def tidy(ctx: dict[str, Any]) -> None:
    await asyncio.sleep(0.2)


def environment(url: str, provider: str) -> dict[str, str]:
    module = "docs.screenshots"
    names = ("send_mail", "index_files", "summarize", "tidy")
    return {
        **demo_environment(url, provider),
        "PYTHONPATH": str(HERE.parent),
        "LETTA_WORKER_FUNCTIONS": ",".join(f"{module}:{name}" for name in names),
        "LETTA_WORKER_CRONS": f"{module}:tidy=* * * * *",
        "LETTA_WORKER_MAX_JOBS": "10",
        "LETTA_WEBHOOK_RETRY_BASE_S": "60",
        "LETTA_WEBHOOK_BREAKER_OPEN_S": "30",
        "LETTA_LLM_BATCH_MAX_AGE_S": "20",
        "LETTA_LLM_BATCH_CRON": "0 0 * * *",
        "LETTA_LLM_POLL_INTERVAL_S": "5",
    }


# -- the work ---------------------------------------------------------------------


async def prepare(queue: JobQueue) -> None:
    await queue.jobs.schedule("nightly-index", call("index_files", 1), cron="0 3 * * *")
    await queue.jobs.schedule("digest", call("send_mail", "all@example.com"), every_s=45)
    await queue.jobs.schedule("monthly-report", call("summarize", 1), cron="0 6 1 * *")
    await queue.jobs.switches.off("monthly-report")
    for n in range(120):
        to, job_id = f"user{n}@example.com", f"reminder-{n}"
        await queue.enqueue("send_mail", to, job_id=job_id, delay_s=3600 + 60 * n)


async def work(queue: JobQueue, receiver: str, until: float) -> None:
    """A round of everything each second."""
    for n in itertools.count():
        if time.monotonic() > until:
            return
        for _ in range(random.randint(2, 6)):
            priority = random.choice(list(Priority))
            await queue.enqueue("send_mail", f"user{n}@example.com", priority=priority)
        await queue.enqueue("summarize", n, priority=Priority.LOW)
        if n % 4 == 0:
            await queue.enqueue("index_files", n)
        hook = f"{receiver}{'/flaky/1' if n % 7 == 0 else '/ok'}?customer={n % 5}"
        await queue.send_webhook(hook, {"n": n}, event_type="agent.run.finished")
        if n % 20 == 0:
            for path in ("/status/500", "/status/410"):
                await queue.send_webhook(receiver + path, {"n": n}, event_type="agent.created")
        for model in MODELS if n % 2 else MODELS[:1]:
            text = f"question {n}" + (", please fail" if n % 25 == 7 else "")
            await queue.submit_llm_request(
                {"model": model, "messages": [{"role": "user", "content": text}]},
                provider="openai",
                endpoint=CHAT,
            )
        await asyncio.sleep(1)


async def leave_something_to_see(queue: JobQueue) -> None:
    """A pause and what it holds, and jobs that wait for free slots."""
    await queue.jobs.pauses.pause(function="summarize")
    for n in range(30):
        await queue.enqueue("summarize", n, priority=Priority.CRITICAL)
    await eventually(lambda: _holds(queue, 30))
    for n in range(120):
        priority = list(Priority)[n % 4]
        await queue.enqueue("index_files", n, priority=priority)


async def _holds(queue: JobQueue, count: int) -> bool:
    return (await queue.jobs.overview()).paused >= count


# -- the pictures -------------------------------------------------------------------


async def shoot(address: str, target: Path) -> None:
    async with browsing() as browser:
        for shot in SHOTS:
            scheme: Any = "dark" if shot.name.endswith("dark") else "light"
            size: Any = {"width": shot.width, "height": shot.height or 800}
            async with await browser.new_context(
                base_url=address, viewport=size, color_scheme=scheme
            ) as context:
                page = await context.new_page()
                reply = await page.goto(shot.path)
                assert reply is not None
                assert reply.status == 200, f"{shot.path}: {reply.status}"
                path = target / f"page-{shot.name}.png"
                await page.screenshot(path=path, full_page=shot.height is None)
                make_small(path)


def make_small(path: Path) -> None:
    program = shutil.which("pngquant")
    if program:
        command = [program, "--force", "--strip", "--speed", "1", "--output", str(path)]
        command += ["64", str(path)]
        subprocess.run(command, check=True)


@contextmanager
def fleet() -> Iterator[tuple[dict[str, str], str, str]]:
    """A server, a receiver, a provider and two workers: settings, the receiver and the page."""
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="letta-screenshots-"))
        server = f"embedded://{home}/valkey"
        url = embedded.acquire(server)
        stack.callback(embedded.release, server)
        receiver = stack.enter_context(running("worker.demo.receiver"))
        provider = stack.enter_context(running("worker.demo.openai_server"))
        environ = environment(url, provider)
        log = stack.enter_context(open(f"{home}/workers.log", "wb+"))  # noqa: PTH123
        stack.enter_context(workers(environ, 2, log))
        wait_for_workers(log.name, 2)
        yield environ, receiver, page_address(log.name)


async def main(minutes: float, target: Path) -> None:
    with fleet() as (environ, receiver, address):
        raw = {k[6:].lower(): v for k, v in environ.items() if k.startswith("LETTA_")}
        async with open_queue(load_settings(**raw)) as queue:
            await prepare(queue)
            print(f"see it at work: {address}", flush=True)
            await work(queue, receiver, time.monotonic() + 60 * minutes)
            await leave_something_to_see(queue)
            await shoot(address, target)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--to", type=Path, default=HERE / "images")
    chosen = parser.parse_args()
    asyncio.run(main(chosen.minutes, chosen.to))
