"""What the handlers of all pages and calls are given."""

from __future__ import annotations

from dataclasses import dataclass

from worker.client import JobQueue
from worker.web.access import Access


@dataclass(frozen=True, slots=True)
class Site:
    """
    The queue, who may ask, and what is shown.

    host: whose workers /readyz asks for; None asks for the server alone.
    """

    queue: JobQueue
    access: Access
    show_arguments: bool = False
    host: str | None = None
