"""
Counts against a ledger: workers are killed while their jobs succeed, fail, retry, die and time out.

History, metrics, stats and dead letters must agree with each other, and with the runs that the
jobs themselves wrote down. `make soak SEED= MINUTES=` runs longer.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cache.connection.pool import PoolOptions, open_pool
from tests.support import ledger_jobs
from tests.support.engine_process import Ledger
from tests.support.forks import Forks, forks
from tests.support.queues import open_queue
from tests.support.wait import eventually
from tests.support.web import asking
from tests.support.workers import quick_settings
from worker import JobQueue, Priority, call
from worker.queue.calls import Call
from worker.queue.history import Step
from worker.queue.letters import DeadLetter
from worker.queue.series import OUTCOMES, Counts

pytestmark = pytest.mark.faults

SEED = int(os.environ.get("SOAK_SEED", "1"))
MINUTES = float(os.environ.get("SOAK_MINUTES", "0"))
WORKERS, CONCURRENCY, TRIES, LOST_LEASES = 2, 8, 3, 3
JOBS = 60 if not MINUTES else int(1500 * MINUTES)
KILLS = 3 if not MINUTES else int(30 * MINUTES)
DEADLY = 1 if not MINUTES else int(2 * MINUTES)
PATIENT = PoolOptions(connect_timeout_s=20, socket_timeout_s=20)


def calls(rng: random.Random) -> list[Call]:
    names = ["succeed", "fail_once", "fail_always", "time_out"]
    names += rng.choices(names, [6, 2, 1, 1], k=JOBS - len(names) - DEADLY)
    names += ["die"] * DEADLY
    rng.shuffle(names)
    return [
        call(
            name,
            *([rng.choice([0, 0.01, 0.3])] if name == "succeed" else []),
            job_id=f"{name}-{number}",
            priority=rng.choice(list(Priority)),
            delay_s=rng.choice([0, 0, 0.3]),
        )
        for number, name in enumerate(names)
    ]


def environment(url: str, ledger: Ledger) -> dict[str, str]:
    return {
        "LETTA_REDIS_URL": url,
        "LETTA_WORKER_FUNCTIONS": ledger_jobs.FUNCTIONS,
        "LETTA_WORKER_JOB_TIMEOUT_S": "1",
        "LETTA_WORKER_LEASE_S": "1",
        "LETTA_WORKER_LOG_LEVEL": "CRITICAL",
        "LETTA_WORKER_MAX_JOBS": str(CONCURRENCY),
        "LETTA_WORKER_MAX_TRIES": str(TRIES),
        "LETTA_WORKER_RETRY_BASE_S": "0.05",
        "LEDGER": str(ledger.path),
    }


async def work_off(
    client: Any, wanted: Sequence[Call], workers: Forks, ledger: Ledger, rng: random.Random
) -> int:
    """Keep workers up, and kill busy ones, until all jobs have ended. Returns how many died."""
    started = 0
    strikes = [JOBS * (number + 1) // (KILLS + 1) for number in range(KILLS)]  # by runs begun
    bodies = [f"arq:job:{one.job_id}" for one in wanted]

    async def all_ended() -> bool:
        nonlocal started
        if strikes and len(ledger.of("start")) >= strikes[0]:
            underway = Counter(line[2] for line in ledger.of("start"))
            underway -= Counter(line[2] for line in ledger.of("end"))
            busy = [pid for pid in workers.alive() if underway[str(pid)]]
            if busy:
                workers.kill(rng.choice(busy))
                strikes.pop(0)
        while len(workers.alive()) < WORKERS:
            workers.start()
            started += 1
        return not await client.exists(*bodies)

    await eventually(all_ended, deadline_s=120 + 120 * MINUTES)
    workers.kill_all()
    return started - WORKERS


@pytest.mark.timeout(180 + 180 * MINUTES)
async def test_history_metrics_and_stats_equal_the_ledger_of_killed_workers(
    private_valkey_url: str, tmp_path: Path
) -> None:
    rng, ledger = random.Random(SEED), Ledger(tmp_path / "ledger")
    wanted = calls(rng)
    async with (
        open_queue(quick_settings(private_valkey_url)) as queue,
        open_pool(private_valkey_url, PATIENT, name="chaos") as client,
    ):
        with forks(tmp_path / "log", **environment(private_valkey_url, ledger)) as workers:
            await queue.enqueue_many(wanted)
            deaths = await work_off(client, wanted, workers, ledger, rng)
        assert deaths > DEADLY * LOST_LEASES, "no worker was killed from outside"
        letters = {one.id: one for one in await queue.dead.list(limit=2 * JOBS)}
        counts = await history(queue)
        for name in {one.name for one in wanted}:
            mine = [one for one in wanted if one.name == name]
            check_function(mine, counts, letters, ledger, deaths)
        await check_metrics(queue, counts, len(letters))


async def history(queue: JobQueue) -> Mapping[tuple[str, str], Counts]:
    """Totals by function and priority; the sums of minutes and of hours equal them."""
    since = datetime.now(UTC) - timedelta(hours=20)
    found: dict[tuple[str, str], Counts] = {}
    steps: list[Step] = ["minute", "hour"]
    for step in steps:
        for series in await queue.history(since=since, step=step):
            assert series.counts == series.total
            key = series.function, series.priority.value
            assert found.setdefault(key, series.total) == series.total
    return found


def check_function(
    wanted: Sequence[Call],
    counts: Mapping[tuple[str, str], Counts],
    letters: Mapping[str, DeadLetter],
    ledger: Ledger,
    deaths: int,
) -> None:
    """Compare the counts of one function, by priority, with what its runs wrote down."""
    for priority in {one.priority for one in wanted}:
        ids = {str(one.job_id) for one in wanted if one.priority == priority}
        starts = [line for line in ledger.of("start") if line[1] in ids]
        finished = {line[1] for line in ledger.of("end")} & ids
        dead = {id_: letters[id_].reason for id_ in ids & set(letters)}
        poison = {id_ for id_, reason in dead.items() if reason == "poison"}
        total = counts[wanted[0].name, priority.value]

        # A job dies although it ran to its end only if its workers died before they said so.
        assert ids - finished <= set(dead) <= ids - finished | poison
        assert total.completed == len(ids) - len(dead)
        assert total.dead == len(dead)
        # The next try of a poison job may have been lost before it began.
        tries = Counter(dict.fromkeys(ids, 0))
        for _, id_, _, number in starts:
            tries[id_] = max(tries[id_], int(number))
        retries = sum(tries.values()) - sum(1 for number in tries.values() if number)
        assert retries <= total.retried <= retries + len(poison)
        assert {tries[id_] for id_ in set(dead) - poison} <= {TRIES}
        # Each run that began ended or lapsed. Claims that lapsed before their job began make the rest.
        ended = total.completed + total.retried + total.dead - len(poison)
        assert total.run.count == total.wait.count == ended
        unbegun = ended + total.lapsed + total.given_back - len(starts)
        assert 0 <= unbegun <= deaths * CONCURRENCY
        assert total.aborted == total.parked == 0


async def check_metrics(
    queue: JobQueue, counts: Mapping[tuple[str, str], Counts], dead: int
) -> None:
    stats = await queue.stats()
    async with asking(queue) as web:
        families = list(text_string_to_metric_families((await web.get("/metrics")).text))
        shown = (await web.get("/api/stats")).json()
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    for (function, priority), total in counts.items():
        labels = [("queue", priority), ("task", function)]
        for outcome in OUTCOMES:
            key = ("letta_job_ends_total", *sorted([*labels, ("outcome", outcome)]))
            assert samples[key] == getattr(total, outcome), key
        assert samples["letta_job_duration_seconds_count", *labels] == total.run.count
        assert samples["letta_job_queue_time_seconds_count", *labels] == total.wait.count
    assert samples["letta_jobs", ("state", "dead")] == dead
    for rows in (stats, shown):
        assert sum(row["dead"] for row in rows.values()) == dead
