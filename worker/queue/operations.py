"""Lists, shows, counts and aborts jobs, and makes them due now: the operator's part of the client."""

from __future__ import annotations

from collections.abc import Sequence

from worker.errors import InvalidArgument
from worker.queue import arguments
from worker.queue.audit import AuditTrail
from worker.queue.filters import JobFilter
from worker.queue.fleet import Fleet, WorkerRow, read_fleet
from worker.queue.history import History
from worker.queue.job import reach
from worker.queue.listing import JobListing, JobPage
from worker.queue.overview import Overview, read_overview
from worker.queue.pauses import Pauses
from worker.queue.priority import Priority
from worker.queue.rows import JobCall, JobRow, JobState
from worker.queue.schedules import Schedule, ScheduleState, ScheduleStore
from worker.queue.server import ServerState, read_server
from worker.queue.store import QueueStore
from worker.queue.switches import Switches

# Ids of one call: a script takes a few milliseconds for more.
_MOST_IDS = 200


class JobOperations:
    """
    `history` reads how jobs ended, `pauses` holds jobs back, `switches` stops schedules and crons,
    `audit` lists what operators changed.
    """

    def __init__(self, store: QueueStore, schedules: ScheduleStore) -> None:
        self._store = store
        self._schedules = schedules
        self._keys = store.keys
        self._listing = JobListing(store.client, store.keys)
        self.history = History(store.client, store.keys)
        self.pauses = Pauses(store.client, store.keys)
        self.switches = Switches(store.client, store.keys)
        self.audit = AuditTrail(store.client, store.keys)

    async def unschedule(self, schedule_id: str) -> bool:
        """Remove a repeating job; queued runs stay. Returns False when there is none."""
        arguments.require_name("schedule_id", schedule_id)
        return await reach(self._schedules.remove(schedule_id))

    async def schedules(self) -> list[Schedule]:
        """All repeating jobs."""
        return await reach(self._schedules.list())

    async def schedule_states(self) -> Sequence[ScheduleState]:
        """All repeating jobs, each with its next and its last run."""
        return await reach(self._schedules.states())

    async def list(
        self,
        state: JobState | str | None = None,
        *,
        function: str | None = None,
        priority: Priority | None = None,
        limit: int = 100,
        cursor: str = "",
    ) -> JobPage:
        """
        List jobs that have not ended, by priority and due time; their arguments are left out.

        The filters combine. `JobPage.cursor` gives the next page: pass it with the same filters.
        A page has at most `limit` jobs, and fewer where few of the 10,000 that it looked at match.
        Dead letters are in `queue.dead`.

        Raises:
            InvalidArgument: no such state, a limit outside 1 to 1,000, or a foreign cursor.
        """
        wanted = JobFilter(function=function, priority=priority)
        return await self.search(state, wanted, limit=limit, cursor=cursor)

    async def search(
        self,
        state: JobState | str | None,
        wanted: JobFilter,
        *,
        limit: int = 100,
        cursor: str = "",
        looks: int = 10_000,
    ) -> JobPage:
        """
        As `list`, by all parts of a filter but `error` and `arguments`; it looks at about `looks` jobs.

        Raises:
            InvalidArgument: as `list`, or a part of the filter is not valid.
        """
        return await self._listing.page(state, wanted, limit=limit, cursor=cursor, looks=looks)

    async def run_now(self, *job_ids: str) -> int:
        """
        Make deferred jobs due now; returns how many were deferred. Retries are deferred jobs, too.

        Raises:
            InvalidArgument: no id, or more than 200.
        """
        _require_ids(job_ids)
        return await reach(self._store.run_now(job_ids))

    async def request_aborts(self, job_ids: Sequence[str]) -> int:
        """
        Request the abort of jobs and wait for no end; returns how many are newly requested.

        Raises:
            InvalidArgument: no id, or more than 200.
        """
        _require_ids(job_ids)
        return await reach(self._store.abort_each(job_ids))

    async def describe(self, job_id: str) -> JobRow:
        """
        One job that has not ended, without its arguments.

        Raises:
            NotFound: no job of this id waits or runs.
        """
        return await self._listing.get(job_id)

    async def arguments(self, job_id: str) -> JobCall:
        """
        The function and arguments of a job that has not ended, or of a dead letter.

        They may hold secrets: show them only to people who may see those.

        Raises:
            NotFound: no such job or dead letter; or its body cannot be read.
        """
        return await self._listing.call(job_id)

    async def workers(self) -> Sequence[WorkerRow]:
        """The live workers, by host and process."""
        return (await self.fleet()).workers

    async def fleet(self) -> Fleet:
        """The live workers, and those that have lapsed."""
        return await read_fleet(self._store.client, self._keys)

    async def server(self) -> ServerState:
        """Memory, evictions and replication of the queue's server."""
        return await read_server(self._store.client)

    async def overview(self) -> Overview:
        """Count jobs, deliveries and batches in a few short commands, however many there are."""
        return await read_overview(self._store.client, self._keys)

    async def stats(self) -> dict[str, dict[str, float]]:
        """
        Per priority: queued, deferred, running, paused, parked, dead (jobs) and oldest_age_s.

        A paused job is due, but its function or priority is paused. A parked job waits for a
        worker that has its function; it is queued, deferred or paused as well.
        """
        counts = await reach(self._store.counts())
        return {
            priority.value: {
                "queued": row.queued,
                "deferred": row.deferred,
                "running": row.running,
                "paused": row.paused,
                "parked": row.parked,
                "dead": row.dead,
                "oldest_age_s": row.oldest_age_s,
            }
            for priority, row in counts.items()
        }


def _require_ids(job_ids: Sequence[str]) -> None:
    if not 1 <= len(job_ids) <= _MOST_IDS:
        raise InvalidArgument(f"give 1 to {_MOST_IDS} ids, not {len(job_ids)}")
    for id_ in job_ids:
        arguments.require_name("job_ids", id_)
