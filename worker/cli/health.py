"""Implements `letta-workers health`: whether this machine's workers are alive."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import click

from cache.errors import RedisUnavailable
from settings import load_settings
from worker.cli.probe import assess, text_of, unknown
from worker.cli.support import EXIT_FAILED, json_option, reached
from worker.keys import QUEUE_TAG, QueueKeys


@click.command()
@click.option("--any", "everywhere", is_flag=True, help="Count the workers of all machines.")
@json_option
def health(everywhere: bool, as_json: bool) -> None:
    """Exit 0 if a worker of this machine is alive, by its heartbeat on the queue's server, else 1.

    A container is a machine of its own. While the server cannot be reached, nothing is known
    about the workers: the command says so and exits 1.

    \b
    Examples:
      letta-workers health
      letta-workers health --any --json
    """
    settings = load_settings()

    async def probe() -> list[dict[str, Any]]:
        async with reached(settings, settings.redis_url, tag=QUEUE_TAG) as client:
            return await live_workers(client)

    try:
        workers = asyncio.run(probe())
    except RedisUnavailable as exc:
        found = unknown(exc, as_json=as_json)
        click.echo(found.text, err=found.is_error)
        raise SystemExit(found.code) from None
    report = assess(workers, everywhere=everywhere)
    click.echo(text_of(report, as_json=as_json))
    raise SystemExit(0 if report["healthy"] else EXIT_FAILED)


async def live_workers(client: Any) -> list[dict[str, Any]]:
    """Return the heartbeats of live workers. A heartbeat's TTL is a few seconds."""
    keys = QueueKeys.of(client)
    ids = [id_.decode() for id_ in await client.zrange(keys.workers, 0, -1)]
    heartbeats = await client.mget([keys.worker(id_) for id_ in ids]) if ids else []
    return [json.loads(heartbeat) for heartbeat in heartbeats if heartbeat is not None]
