"""Counts the demo's results and renders them as a table."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table


@dataclass
class Report:
    """The demo's results; `missing` lists what was acknowledged and did not arrive."""

    webhooks: int = 0
    delivered: int = 0
    retried: int = 0
    webhook_ms: list[float] = field(default_factory=list)
    requests: int = 0
    answered: int = 0
    own_errors: int = 0
    request_ms: list[float] = field(default_factory=list)
    reads: int = 0
    hits: int = 0
    loader_calls: int = 0
    stale: int = 0
    missing: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "webhooks": {
                "sent": self.webhooks,
                "delivered": self.delivered,
                "retried": self.retried,
                "p50_ms": percentile(self.webhook_ms, 50),
                "p99_ms": percentile(self.webhook_ms, 99),
            },
            "llm_requests": {
                "submitted": self.requests,
                "answered": self.answered,
                "own_errors": self.own_errors,
                "p50_ms": percentile(self.request_ms, 50),
                "p99_ms": percentile(self.request_ms, 99),
            },
            "agent_cache": {
                "reads": self.reads,
                "hits": self.hits,
                "loader_calls": self.loader_calls,
                "stale_reads": self.stale,
            },
            "missing": self.missing,
            "seconds": round(self.seconds, 2),
        }

    @property
    def ok(self) -> bool:
        return not self.missing and not self.stale


def percentile(values: list[float], percent: int) -> float | None:
    """Return a percentile by linear interpolation; None without values."""
    if len(values) < 2:
        return round(values[0], 1) if values else None
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 1)


def table(report: Report) -> Table:
    """Render the report as a short table."""
    found = report.to_dict()
    grid = Table(title=f"Results after {found['seconds']} s", title_justify="left")
    for name in ("", "asked", "done", "p50 ms", "p99 ms", "details"):
        grid.add_column(name, justify="left" if name in {"", "details"} else "right")
    hooks, llm, agents = found["webhooks"], found["llm_requests"], found["agent_cache"]
    rows = [
        ("webhooks", hooks["sent"], hooks["delivered"], hooks, f"{hooks['retried']} retried"),
        (
            "LLM requests",
            llm["submitted"],
            llm["answered"] + llm["own_errors"],
            llm,
            f"{llm['own_errors']} with their own error",
        ),
        (
            "agent reads",
            agents["reads"],
            agents["reads"] - agents["stale_reads"],
            {},
            f"{agents['hits']} cache hits, {agents['loader_calls']} loader calls, "
            f"{agents['stale_reads']} stale",
        ),
    ]
    for name, asked, done, times, note in rows:
        figures = (asked, done, times.get("p50_ms", ""), times.get("p99_ms", ""))
        grid.add_row(name, *map(str, figures), note)
    grid.caption = "nothing is missing" if report.ok else "; ".join(report.missing[:5])
    return grid
