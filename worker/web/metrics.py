"""
Renders the fleet's counts as Prometheus metrics.

They come from the servers of the queue and the cache, so every process that is asked gives those of
all processes.
No label is an id: their values are functions, priorities, states, outcomes, and the providers,
endpoints and models of LLM requests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from cache.usage import CacheUsage
from worker.llm.history import GroupHistory
from worker.llm.progress import StateProgress
from worker.queue.fleet import Fleet
from worker.queue.history import FunctionHistory
from worker.queue.overview import Overview
from worker.queue.series import LIMITS_MS, OUTCOMES, Times
from worker.queue.server import ServerState

_LIMITS = [*(f"{limit / 1000:g}" for limit in LIMITS_MS), "+Inf"]


@dataclass(frozen=True, slots=True)
class FleetReading:
    """What one answer is made of."""

    overview: Overview
    fleet: Fleet
    totals: Sequence[FunctionHistory]
    requests: Sequence[GroupHistory]
    batches: Sequence[StateProgress]
    server: ServerState
    cache: CacheUsage | None


class _Readings(Collector):
    def __init__(self, reading: FleetReading) -> None:
        self._reading = reading

    def collect(self) -> Iterable[Metric]:
        yield from _counts(self._reading.overview)
        yield from _workers(self._reading.fleet)
        yield from _batches(self._reading.batches)
        yield from _server(self._reading.server)
        yield from _ends(self._reading.totals)
        yield from _requests(self._reading.requests)
        if self._reading.cache is not None:
            yield from _cache(self._reading.cache)


def render(reading: FleetReading, accept: str) -> tuple[bytes, str]:
    """Return the text and its type, as the `Accept` header of a scraper chooses."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Readings(reading))
    try:
        encode, content_type = choose_encoder(accept)
    except Exception:  # noqa: BLE001  (it reads versions that a client made up)
        encode, content_type = choose_encoder("")
    return encode(registry), content_type


def _counts(overview: Overview) -> Iterator[Metric]:
    due = GaugeMetricFamily("letta_queue_jobs_due", "Jobs that are due and wait.", labels=["queue"])
    age = GaugeMetricFamily(
        "letta_queue_oldest_job_age_seconds",
        "For how long the oldest waiting job has been due.",
        labels=["queue"],
    )
    for priority, queue in overview.queues.items():
        due.add_metric([priority.value], queue.due)
        age.add_metric([priority.value], queue.oldest_age_s)
    jobs = GaugeMetricFamily("letta_jobs", "Jobs that are not due.", labels=["state"])
    for state in ("deferred", "running", "paused", "parked", "dead"):
        jobs.add_metric([state], getattr(overview, state))
    endpoints = GaugeMetricFamily(
        "letta_webhook_endpoints", "Endpoints that fail or are disabled.", labels=["state"]
    )
    endpoints.add_metric(["failing"], overview.failing_endpoints)
    endpoints.add_metric(["disabled"], overview.disabled_endpoints)
    yield from (due, age, jobs, endpoints)
    yield GaugeMetricFamily(
        "letta_lease_late_seconds",
        "For how long the lease has lapsed that lapsed first; 0: none has.",
        overview.lease_late_s,
    )
    yield GaugeMetricFamily(
        "letta_queue_replicas", "Replicas of the queue's server that are online.", overview.replicas
    )
    yield GaugeMetricFamily(
        "letta_webhook_deliveries_open", "Deliveries that have not ended.", overview.deliveries
    )
    yield GaugeMetricFamily(
        "letta_llm_batches_open", "Batches that have not ended.", overview.batches
    )


def _batches(progress: Sequence[StateProgress]) -> Iterator[Metric]:
    idle = GaugeMetricFamily(
        "letta_llm_batch_idle_seconds",
        "For how long the open batch has not moved that has not moved longest.",
        labels=["state"],
    )
    for each in progress:
        idle.add_metric([each.state.value], each.idle_s)
    yield idle
    yield GaugeMetricFamily(
        "letta_llm_batches_failing",
        "Open batches with an error that keeps them from moving.",
        sum(each.failing for each in progress),
    )


def _server(server: ServerState) -> Iterator[Metric]:
    prefix = "letta_queue_server"
    yield GaugeMetricFamily(
        f"{prefix}_memory_used_bytes", "Memory in use.", server.memory_used_bytes
    )
    yield GaugeMetricFamily(
        f"{prefix}_memory_max_bytes", "Limit of its memory; 0: none.", server.memory_max_bytes
    )
    yield CounterMetricFamily(
        f"{prefix}_evicted_keys", "Keys that it threw away for room.", server.evicted_keys
    )
    replicas = GaugeMetricFamily(f"{prefix}_replicas", "Connected replicas.", labels=["state"])
    replicas.add_metric(["online"], server.replicas_online)
    replicas.add_metric(["syncing"], server.replicas_syncing)
    yield replicas
    yield GaugeMetricFamily(
        f"{prefix}_replica_lag_bytes",
        "By how much the replica is behind that is furthest behind.",
        server.replica_lag_bytes,
    )
    yield GaugeMetricFamily(
        f"{prefix}_primary_link_up",
        "0 on a replica that has lost its primary, else 1.",
        int(server.is_primary_linked),
    )


def _cache(usage: CacheUsage) -> Iterator[Metric]:
    reads = CounterMetricFamily(
        "letta_cache_reads", "Reads of the cache by all processes.", labels=["kind", "outcome"]
    )
    for each in usage.reads:
        reads.add_metric([each.kind, "hit"], each.hits)
        reads.add_metric([each.kind, "miss"], each.misses)
    yield reads
    yield CounterMetricFamily("letta_cache_loads", "Loaders that ran for a miss.", usage.loads)
    yield CounterMetricFamily(
        "letta_cache_invalidations", "Names that were invalidated.", usage.invalidations
    )
    prefix = "letta_cache_server"
    yield GaugeMetricFamily(
        f"{prefix}_memory_used_bytes", "Memory in use, by all primaries.", usage.memory_used_bytes
    )
    yield GaugeMetricFamily(
        f"{prefix}_memory_max_bytes", "Limit of their memory; 0: none.", usage.memory_max_bytes
    )
    yield CounterMetricFamily(
        f"{prefix}_evicted_keys", "Keys that they threw away for room.", usage.evicted_keys
    )


def _workers(fleet: Fleet) -> Iterator[Metric]:
    workers = fleet.workers
    alive = GaugeMetricFamily(
        "letta_workers", "Worker processes; lapsed ones have no heartbeat.", labels=["state"]
    )
    draining = sum(worker.draining for worker in workers)
    alive.add_metric(["draining"], draining)
    alive.add_metric(["working"], len(workers) - draining)
    alive.add_metric(["lapsed"], len(fleet.lapsed))
    yield alive
    slots = sum(worker.max_jobs for worker in workers)
    yield GaugeMetricFamily(
        "letta_worker_slots", "Jobs that all live workers can run at a time.", slots
    )
    yield GaugeMetricFamily(
        "letta_workers_memory_bytes",
        "Resident memory of all live workers.",
        sum(worker.memory_bytes or 0 for worker in workers),
    )
    yield GaugeMetricFamily(
        "letta_workers_cpu_cores",
        "Cores that all live workers used between their last heartbeats.",
        sum(worker.cpu or 0.0 for worker in workers),
    )
    yield GaugeMetricFamily(
        "letta_worker_loop_lag_seconds",
        "By how much the event loop was late that was latest, at a live worker's last heartbeat.",
        max((worker.lag_s or 0.0 for worker in workers), default=0.0),
    )


def _ends(totals: Sequence[FunctionHistory]) -> Iterator[Metric]:
    names = ["task", "queue"]
    ends = CounterMetricFamily(
        "letta_job_ends",
        "Ends of runs by outcome; `lapsed` counts leases that ended with their worker.",
        labels=[*names, "outcome"],
    )
    runs = HistogramMetricFamily("letta_job_duration_seconds", "Times of runs.", labels=names)
    waits = HistogramMetricFamily(
        "letta_job_queue_time_seconds", "From the due time of a run to its start.", labels=names
    )
    for series in totals:
        labels = [series.function, series.priority.value]
        for outcome in OUTCOMES:
            ends.add_metric([*labels, outcome], getattr(series.total, outcome))
        _add(runs, labels, series.total.run)
        _add(waits, labels, series.total.wait)
    yield from (ends, runs, waits)


def _requests(totals: Sequence[GroupHistory]) -> Iterator[Metric]:
    names = ["provider", "endpoint", "model"]
    prefix = "letta_llm_request"
    ends = CounterMetricFamily(
        f"{prefix}_ends",
        "Ends of LLM requests by outcome; `retried` counts those that a batch gave back.",
        labels=[*names, "outcome"],
    )
    runs = HistogramMetricFamily(
        f"{prefix}_duration_seconds",
        "From the sending of a request, or of its batch, to its answer.",
        labels=names,
    )
    waits = HistogramMetricFamily(
        f"{prefix}_queue_time_seconds",
        "From the submission of a request to its sending.",
        labels=names,
    )
    for group in totals:
        labels = [group.provider, group.endpoint, group.model]
        for outcome in ("completed", "retried", "dead", "aborted"):
            ends.add_metric([*labels, outcome], getattr(group.total, outcome))
        _add(runs, labels, group.total.run)
        _add(waits, labels, group.total.wait)
    yield from (ends, runs, waits)


def _add(family: HistogramMetricFamily, labels: Sequence[str], times: Times) -> None:
    buckets = zip(_LIMITS, accumulate(times.counts), strict=True)
    family.add_metric(labels, list(buckets), times.total_s)
