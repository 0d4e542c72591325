"""Runs a worker inside the test's process, with settings for the test's own servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from settings import Settings, load_settings
from worker.app.service import build_worker


def quick_settings(url: str, **overrides: Any) -> Settings:
    """Settings that allow loopback, with retries and polls within milliseconds."""
    values: dict[str, Any] = {
        "redis_url": url,
        "webhook_allow_cidrs": "127.0.0.0/8",
        "llm_allow_cidrs": "127.0.0.0/8",
        "webhook_retry_base_s": 0.02,
        "llm_poll_interval_s": 0.05,
        "worker_shutdown_grace_s": 5,
        "worker_log_format": "json",
    }
    return load_settings(**{**values, **overrides})


@asynccontextmanager
async def running_worker(settings: Settings) -> AsyncIterator[Any]:
    """Run a worker until the block ends, then drain it; its own failure fails the test."""
    worker = build_worker(settings)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.drain()
        await task
