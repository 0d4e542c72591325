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

from examples.running import run
from letta_redis import call, open_queue

DEADLINE_S = 60.0


def database() -> sqlite3.Connection:
    return sqlite3.connect(os.environ["EXAMPLE_DATABASE"], isolation_level=None)


async def purge_sessions(_ctx: dict[str, Any]) -> None:
    """LETTA_WORKER_CRONS contains its name and expression: here, every second."""
    with closing(database()) as db:
        db.execute("DELETE FROM sessions WHERE expired")


async def count_sessions(_ctx: dict[str, Any], label: str) -> None:
    with closing(database()) as db:
        db.execute("INSERT INTO reports SELECT ?, count(*) FROM sessions", (label,))


async def wait_for(query: str) -> Any:
    """Wait until a query has a row; returns the first."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with closing(database()) as db:
                row = db.execute(query).fetchone()
            if row is not None:
                return row
            await asyncio.sleep(0.05)


async def main() -> None:
    with closing(database()) as db:
        db.execute("CREATE TABLE sessions (id TEXT, expired INTEGER)")
        db.execute("CREATE TABLE reports (label TEXT, sessions INTEGER)")
        db.execute("INSERT INTO sessions VALUES ('s-1', 1), ('s-2', 1), ('s-3', 0)")

    await wait_for("SELECT 1 WHERE NOT EXISTS (SELECT * FROM sessions WHERE expired)")
    print("the cron job has deleted the expired sessions")

    async with open_queue() as queue:
        # The same id again replaces the schedule; it runs until `unschedule`.
        await queue.schedule("session-report", call("count_sessions", "hourly"), every_s=0.5)
        label, sessions = await wait_for("SELECT * FROM reports")
        print(f"the schedule has written the {label} report: {sessions} session")
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
