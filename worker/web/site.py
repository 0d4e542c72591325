"""Defines what the handlers of all pages and calls get."""

from __future__ import annotations

from dataclasses import dataclass, field

from cache.usage import UsageReader
from worker.client import JobQueue
from worker.web.access import Access
from worker.web.attempts import Attempts


@dataclass(frozen=True, slots=True)
class Site:
    """
    The queue, who may ask, and what is shown.

    host: whose workers /readyz asks for; None asks for the server alone.
    attempts: wrong tokens in headers of requests.
    cache: reads the cache's hit rates and memory; None: no cache is used.
    """

    queue: JobQueue
    access: Access
    show_arguments: bool = False
    host: str | None = None
    cache: UsageReader | None = None
    attempts: Attempts = field(default_factory=Attempts)
