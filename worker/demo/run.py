"""
Runs the demo with real processes and real HTTP, and accounts for everything acknowledged.

Three parts run at the same time on the same workers: webhooks to a receiver that
fails at first, LLM requests in batches, and cached agent reads during
invalidations. The table counts what the receiver saw, what each waiter got and
what each read returned.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import tempfile
import threading
import time
from contextlib import ExitStack
from functools import partial
from typing import IO

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cache import Cache, open_cache
from cache.connection import embedded
from settings import Settings, load_settings
from worker import RequestFailed, WorkerError, open_queue
from worker.client import JobQueue
from worker.demo.report import Report, table
from worker.demo.serving import running
from worker.demo.workers import demo_environment, page_address, wait_for_workers, workers
from worker.terminal import printable_lines

_DEADLINE_S = 50.0
_LOOK_EVERY_S = 0.1
_AGENTS, _READERS, _READS_EACH, _WRITES = 10, 8, 250, 40
_LOAD_S = 0.02
_FAIL_EVERY = 25


def run_demo(*, webhooks: int, requests: int, as_json: bool, keep: bool) -> int:
    """
    Run the demo; return 0 when nothing acknowledged is missing and no read was stale, else 1.

    keep: leave everything running until Ctrl-C or TERM, for a look at the page.
    """
    start = time.monotonic()
    console = Console(stderr=as_json)
    count = load_settings().worker_count
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="letta-demo-"))
        server = f"embedded://{home}/valkey"
        url = embedded.acquire(server)
        stack.callback(embedded.release, server)
        receiver = stack.enter_context(running(f"{__package__}.receiver"))
        provider = stack.enter_context(running(f"{__package__}.openai_server"))
        environment = demo_environment(url, provider)
        log = stack.enter_context(open(f"{home}/workers.log", "wb+"))  # noqa: PTH123
        console.print(f"Valkey, receiver and LLM server started; starting {count} workers")
        stack.enter_context(workers(environment, count, log))
        wait_for_workers(log.name, count)
        page = page_address(log.name)
        console.print(f"see it at work: {page}")
        settings = load_settings(**{k[6:].lower(): v for k, v in environment.items()})
        report = asyncio.run(
            Demo(settings, receiver, console, webhooks=webhooks, requests=requests).run()
        )
        report.seconds = time.monotonic() - start
        if not report.ok:
            _show_last_lines(console, log)
        if as_json:
            print(json.dumps(report.to_dict(), indent=2), flush=True)  # noqa: T201
        else:
            console.print(table(report))
        if keep:
            console.print(f"it goes on at {page} until Ctrl-C")
            _wait_for_end()
    return 0 if report.ok else 1


def _show_last_lines(console: Console, log: IO[bytes]) -> None:
    log.seek(0)
    console.print("[red]the workers' last lines:[/red]", markup=True)
    last = log.read().decode(errors="replace").splitlines()[-20:]
    console.print(printable_lines("\n".join(last)), markup=False)


def _wait_for_end() -> None:
    """Wait for Ctrl-C or TERM, both of which end the demo as its end does."""

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)


class Demo:
    """Runs the three parts and shows their progress."""

    def __init__(
        self, settings: Settings, receiver: str, console: Console, *, webhooks: int, requests: int
    ) -> None:
        self.settings = settings
        self.receiver = receiver
        self.console = console
        self.report = Report(webhooks=webhooks, requests=requests)
        self.progress = Progress(
            TextColumn("{task.description:<16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )

    async def run(self) -> Report:
        async with open_queue(self.settings) as queue, open_cache(self.settings) as cache:
            with self.progress:
                await asyncio.gather(
                    self._webhooks(queue), self._requests(queue), self._agents(cache)
                )
        return self.report

    # -- webhooks ------------------------------------------------------------

    async def _webhooks(self, queue: JobQueue) -> None:
        bar = self.progress.add_task("webhooks", total=self.report.webhooks)
        sent: dict[str, float] = {}
        for n in range(self.report.webhooks):
            # Every fourth webhook goes to a customer whose endpoint fails once or twice.
            path = "/ok" if n % 4 else f"/flaky/{1 + n % 8 // 4}?customer={n}"
            at = time.time()
            id_ = await queue.send_webhook(self.receiver + path, {"n": n}, event_type="demo.event")
            sent[id_] = at
        waiting = set(sent)
        deadline = time.monotonic() + _DEADLINE_S
        while waiting and time.monotonic() < deadline:
            await asyncio.sleep(_LOOK_EVERY_S)
            states = {id_: (await queue.delivery(id_)).state for id_ in waiting}
            waiting = {id_ for id_, state in states.items() if state not in {"delivered", "dead"}}
            self.progress.update(bar, completed=len(sent) - len(waiting))
        await self._compare(queue, sent)

    async def _compare(self, queue: JobQueue, sent: dict[str, float]) -> None:
        """Compare the queue's states with what the receiver saw."""
        async with httpx.AsyncClient(trust_env=False) as client:
            reply = await client.get(f"{self.receiver}/seen", params={"brief": "1"})
        seen: dict[str, list[tuple[float, int]]] = reply.json()
        for id_, at in sent.items():
            attempts = seen.get(id_, [])
            taken = [time_ for time_, status in attempts if status == 200]
            state = (await queue.delivery(id_)).state
            if not taken or state != "delivered":
                self.report.missing.append(f"webhook {id_}: {state}, taken {len(taken)} times")
                continue
            self.report.delivered += 1
            self.report.retried += len(attempts) > 1
            self.report.webhook_ms.append((taken[0] - at) * 1000)

    # -- LLM requests --------------------------------------------------------

    async def _requests(self, queue: JobQueue) -> None:
        bar = self.progress.add_task("LLM requests", total=self.report.requests)

        async def ask(n: int) -> None:
            text = f"question {n}" + (", please fail" if n % _FAIL_EVERY == 7 else "")
            at = time.time()
            id_ = await queue.submit_llm_request(
                {"model": "demo-model", "messages": [{"role": "user", "content": text}]},
                provider="openai",
                endpoint="/v1/chat/completions",
            )
            try:
                answer = await queue.llm_result(id_, timeout_s=_DEADLINE_S)
                right = answer["choices"][0]["message"]["content"] == f"echo: {text}"
                if not right:
                    self.report.missing.append(f"request {n}: the answer of another request")
                self.report.answered += right
            except RequestFailed as exc:
                if "please fail" in text and exc.kind == "invalid_prompt":
                    self.report.own_errors += 1
                else:
                    self.report.missing.append(f"request {n}: {exc}")
            except WorkerError as exc:
                self.report.missing.append(f"request {n}: {exc}")
            self.report.request_ms.append((time.time() - at) * 1000)
            self.progress.advance(bar)

        await asyncio.gather(*(ask(n) for n in range(self.report.requests)))

    # -- agents --------------------------------------------------------------

    async def _agents(self, cache: Cache) -> None:
        bar = self.progress.add_task("agent reads", total=_READERS * _READS_EACH)
        database = {f"agent-{n}": 0 for n in range(_AGENTS)}
        # The oldest version that a read may return: set once `invalidate` has returned.
        oldest = dict(database)
        readers_left = _READERS

        async def load(agent_id: str) -> dict[str, int]:
            self.report.loader_calls += 1
            version = database[agent_id]
            await asyncio.sleep(_LOAD_S)
            return {"version": version}

        async def read(first: int) -> None:
            nonlocal readers_left
            for n in range(first, first + _READS_EACH):
                agent_id = f"agent-{n % _AGENTS}"
                least = oldest[agent_id]
                state = await cache.agents.get_or_load(agent_id, partial(load, agent_id))
                self.report.reads += 1
                self.report.stale += state["version"] < least
                self.progress.advance(bar)
            readers_left -= 1

        async def write() -> None:
            for n in itertools.islice(itertools.cycle(range(_AGENTS)), _WRITES):
                if not readers_left:
                    return
                agent_id = f"agent-{n}"
                database[agent_id] += 1
                version = database[agent_id]
                await cache.agents.invalidate(agent_id)
                oldest[agent_id] = version
                await asyncio.sleep(_LOAD_S)

        await asyncio.gather(*(read(n) for n in range(_READERS)), write())
        self.report.hits = self.report.reads - self.report.loader_calls
