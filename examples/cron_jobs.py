"""
Jobs by the clock: a cron job that the workers get as a setting, and a schedule that a client registers.

    .venv/bin/python -m examples.cron_jobs

Each tick runs once, however many workers there are. Cron expressions are in UTC.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
from contextlib import closing
from typing import Any

from examples.running import report, reported, run
from letta_redis import call, open_queue

DEADLINE_S = 60.0


def database() -> sqlite3.Connection:
    return sqlite3.connect(os.environ["EXAMPLE_DATABASE"], isolation_level=None)


async def purge_sessions(_ctx: dict[str, Any]) -> None:
    """LETTA_WORKER_CRONS contains its name and expression: here, every second."""
    with closing(database()) as db:
        deleted = db.execute("DELETE FROM sessions WHERE expired").rowcount
    if deleted:
        await report(f"the cron job has deleted {deleted} expired sessions")


async def count_sessions(_ctx: dict[str, Any], label: str) -> None:
    with closing(database()) as db:
        (count,) = db.execute("SELECT count(*) FROM sessions").fetchone()
    await report(f"the schedule has written the {label} report: {count} session")


async def main() -> None:
    with closing(database()) as db:
        db.execute("CREATE TABLE sessions (id TEXT, expired INTEGER)")
        db.execute("INSERT INTO sessions VALUES ('s-1', 1), ('s-2', 1), ('s-3', 0)")

    async with asyncio.timeout(DEADLINE_S), open_queue() as queue:
        print(await reported.get())
        # The same id again replaces the schedule; it runs until `unschedule`.
        await queue.schedule("session-report", call("count_sessions", "hourly"), every_s=0.5)
        print(await reported.get())
        print("schedules:", [schedule.id for schedule in await queue.jobs.schedules()])
        await queue.jobs.unschedule("session-report")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["EXAMPLE_DATABASE"] = f"{home}/sessions.sqlite"
        run(
            main,
            worker_crons="examples.cron_jobs:purge_sessions=* * * * * *",
            worker_functions="examples.cron_jobs:count_sessions",
        )
