"""
Polls Letta's Anthropic batches in one server of the fleet, instead of in every process.

Letta elects the polling process by an advisory lock, which an unpooled session loses
when its connection closes. Here the server that holds the lease `letta-batches` polls,
and another takes over when it dies. The interval is Letta's setting:
LETTA_POLL_RUNNING_LLM_BATCHES_INTERVAL_SECONDS.
"""

from __future__ import annotations

import asyncio
from functools import wraps
from typing import Any

from cache.errors import CacheError
from cache.logs import get_logger
from letta_redis.plugin.runtime import Runtime
from letta_redis.plugin.seams import Feature, Seam

log = get_logger("letta_redis")

LEASE = "letta-batches"
TTL_S = 30.0
_PAUSE_S = 5.0
_EVERY_MESSAGE = 1_000_000


def _starting(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def start_scheduler_with_leader_election(server: Any) -> None:
        from letta.settings import settings

        if not settings.enable_batch_job_polling or runtime.cache() is None:
            await original(server)
            return
        polling = asyncio.ensure_future(follow(runtime, server))

        async def end() -> None:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)

        runtime.before_closing.append(end)

    return start_scheduler_with_leader_election


async def follow(runtime: Runtime, server: Any) -> None:
    """Poll while this process holds the lease, until canceled."""
    from letta.jobs.llm_batch_job_polling import poll_running_llm_batches
    from letta.settings import settings

    from letta_redis.plugin.batch_polls import Polls

    cache, polls = runtime.cache(), Polls(server)
    assert cache is not None  # noqa: S101  (opened before the server's start)
    warned = False
    while True:
        try:
            async with cache.lease(LEASE, ttl_s=TTL_S) as lease:
                warned = False
                while True:
                    if runtime.switches.redis_queue:
                        await polls.poll(lease)
                    else:
                        await poll_running_llm_batches(server)
                    await asyncio.sleep(settings.poll_running_llm_batches_interval_seconds)
        except CacheError as exc:
            if not warned:
                log.warning("letta.batches_unpolled", error=str(exc))
            warned = True
        except Exception:
            log.exception("letta.batch_poll_failed")
        await asyncio.sleep(_PAUSE_S)


def _paging(_runtime: Runtime, original: Any) -> Any:
    """Letta's method raises TypeError with a cursor, because it treats a result as a row."""

    @wraps(original)
    async def get_messages_for_letta_batch_async(
        self: Any, *args: Any, cursor: str | None = None, limit: int = 100, **kwargs: Any
    ) -> Any:
        if cursor is None:
            return await original(self, *args, limit=limit, **kwargs)
        messages = await original(self, *args, limit=_EVERY_MESSAGE, **kwargs)
        ids = [message.id for message in messages]
        start = ids.index(cursor) + 1 if cursor in ids else 0
        return messages[start : start + limit]

    return get_messages_for_letta_batch_async


_AGENT = "letta.agents.letta_agent_batch"
_MANAGER = "letta.services.llm_batch_manager:LLMBatchManager"

FEATURE = Feature(
    "batches",
    "queue",
    (
        Seam(
            "letta.jobs.scheduler:start_scheduler_with_leader_election",
            "polls batches in one server of the fleet",
            "(server)",
            digests=("a4f1cce50bb6d7bb",),
            replace=_starting,
        ),
        Seam(
            f"{_MANAGER}.get_messages_for_letta_batch_async",
            "lists a batch's messages after a cursor",
            "(self, letta_batch_job_id, actor, limit=100, agent_id=None, sort_descending=True,"
            " cursor=None)",
            digests=("130c05b2f62c55b2",),
            replace=_paging,
        ),
        Seam(
            "letta.jobs.llm_batch_job_polling:poll_running_llm_batches",
            "polls while this half is switched off",
            "(server)",
            digests=("cb8cabf391d46690",),
        ),
        Seam(
            f"{_AGENT}:LettaAgentBatch",
            "resumes the agents of a batch that has ended",
            None,
            digests=("3087e130de236c78",),
        ),
        Seam(
            _MANAGER,
            "stores the outcome of a batch and its items",
            None,
            digests=("4f53a949ec6ba3d9",),
        ),
    ),
)
