"""Implements `letta-workers cache`: show statistics, invalidate and warm the cache."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import click

from cache import Cache, admin, open_cache
from settings import load_settings
from worker.cli.support import EXIT_FAILED, json_option, reached, show


def with_cache(work: Callable[[Cache], Coroutine[Any, Any, Any]]) -> Any:
    """Run a coroutine with an open cache, whose server answers, and return its result."""

    async def run() -> Any:
        settings = load_settings()
        url = settings.cache_redis_url or settings.redis_url
        async with reached(settings, url), open_cache(settings) as cache:
            return await work(cache)

    return asyncio.run(run())


@click.group()
def cache() -> None:
    """Show, invalidate and warm the cache."""


@cache.command("stats")
@json_option
def cache_stats(as_json: bool) -> None:
    """Show the server's memory, keys by kind, and hit rates and counters of all processes.

    \b
    Examples:
      letta-workers cache stats
      letta-workers cache stats --json | jq .keys
    """
    found = with_cache(admin.stats)

    def lines() -> list[str]:
        parts = ("server", "keys", "hit_rates", "counters")
        rows = [f"{part}.{k}: {v}" for part in parts for k, v in found[part].items()]
        return [*rows, *(f"warning: {text}" for text in found["warnings"])]

    show(found, as_json, lines)
    if "error" in found["server"]:
        raise SystemExit(EXIT_FAILED)


@cache.command("invalidate")
@click.argument("agents", nargs=-1)
@click.option("--dependency", "dependencies", multiple=True, help="A block, tool or source id.")
@click.option("--tag", "tags", multiple=True, help="A tag of stored values.")
@click.option("--organisation", "organisations", multiple=True, help="An organization's id.")
@click.option("--all", "everything", is_flag=True, help="The whole cache.")
@json_option
def cache_invalidate(  # noqa: PLR0917  (click hands everything by name)
    agents: tuple[str, ...],
    dependencies: tuple[str, ...],
    tags: tuple[str, ...],
    organisations: tuple[str, ...],
    everything: bool,
    as_json: bool,
) -> None:
    """Invalidate agents and their messages, or all agents of a dependency, tag or organization.

    Exits 1 if the cache's server could not be reached.

    \b
    Examples:
      letta-workers cache invalidate agent-1 agent-2
      letta-workers cache invalidate --organisation org-1
      letta-workers cache invalidate --all
    """
    if not (agents or dependencies or tags or organisations or everything):
        raise click.UsageError("name agents, --dependency, --tag, --organisation or --all")
    done = with_cache(
        lambda opened: admin.invalidate(
            opened,
            agents=agents,
            dependencies=dependencies,
            tags=tags,
            organisations=organisations,
            everything=everything,
        )
    )
    reason = "NOT delivered: the cache's server cannot be reached, or LETTA_USE_AGENT_CACHE is off"
    state = "invalidated" if done["delivered"] else reason
    show(done, as_json, lambda: [f"{done['named']} named, {state}"])
    raise SystemExit(0 if done["delivered"] else EXIT_FAILED)


@cache.command("warm")
@click.argument("agents", nargs=-1)
@click.option(
    "--loader", required=True, help="package.module:coroutine, called with an agent's id."
)
@click.option("--scope", default="", help="The scope to store under.")
@json_option
def cache_warm(agents: tuple[str, ...], loader: str, scope: str, as_json: bool) -> None:
    """Load the agents that are not cached. Without arguments, read ids from standard input.

    \b
    Examples:
      letta-workers cache warm --loader myapp.agents:load agent-1 agent-2
      cat ids.txt | letta-workers cache warm --loader myapp.agents:load
    """
    from worker.app.functions import load_coroutine

    load = load_coroutine(loader, "--loader")
    ids = agents or tuple(line.strip() for line in sys.stdin if line.strip())
    done = with_cache(lambda opened: admin.warm(opened, ids, load, scope=scope))
    show(done, as_json, lambda: [f"{done['warmed']} warmed, {done['failed']} failed"])
    raise SystemExit(EXIT_FAILED if done["failed"] else 0)
