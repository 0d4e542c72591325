"""
Renders the fleet's counts as Prometheus metrics.

They come from the queue's server, so every process that is asked gives those of all workers.
No label is an id: their values are functions, priorities, states and outcomes.
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

from worker.queue.history import FunctionHistory
from worker.queue.overview import Overview
from worker.queue.rows import WorkerRow
from worker.queue.series import LIMITS_MS, OUTCOMES, Times

_LIMITS = [*(f"{limit / 1000:g}" for limit in LIMITS_MS), "+Inf"]


@dataclass(frozen=True, slots=True)
class Reading:
    """What one answer is made of."""

    overview: Overview
    workers: Sequence[WorkerRow]
    totals: Sequence[FunctionHistory]


class _Readings(Collector):
    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def collect(self) -> Iterable[Metric]:
        yield from _counts(self._reading.overview)
        yield from _workers(self._reading.workers)
        yield from _ends(self._reading.totals)


def render(reading: Reading, accept: str) -> tuple[bytes, str]:
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


def _workers(workers: Sequence[WorkerRow]) -> Iterator[Metric]:
    alive = GaugeMetricFamily("letta_workers", "Live worker processes.", labels=["state"])
    draining = sum(worker.draining for worker in workers)
    alive.add_metric(["draining"], draining)
    alive.add_metric(["working"], len(workers) - draining)
    yield alive
    slots = sum(worker.max_jobs for worker in workers)
    yield GaugeMetricFamily(
        "letta_worker_slots", "Jobs that all live workers can run at a time.", slots
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


def _add(family: HistogramMetricFamily, labels: Sequence[str], times: Times) -> None:
    buckets = zip(_LIMITS, accumulate(times.counts), strict=True)
    family.add_metric(labels, list(buckets), times.total_s)
