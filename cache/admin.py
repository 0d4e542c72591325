"""
Implements `letta-workers cache stats|invalidate|warm` over an open cache.

Every function returns a dict that can be printed as JSON.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from cache.connection.pool import OUTAGE
from cache.connection.refusals import explain
from cache.names import checked_agent_ids, checked_names
from cache.service import Cache
from cache.usage import reads_of

_SERVER_FACTS = {
    "memory": ("used_memory", "maxmemory", "maxmemory_policy"),
    "stats": ("evicted_keys", "expired_keys", "keyspace_hits", "keyspace_misses"),
    "server": ("uptime_in_seconds",),
}
# A scan of more keys would slow down the server's other clients.
MAX_COUNTED_KEYS = 100_000
_BATCH = 1000
# Beside opening the cache, which waits 2 s: a command takes less than 5 s, whatever the server does.
_ANSWER_S = 1.0


async def stats(cache: Cache) -> dict[str, Any]:
    """
    `counters` of all processes, `hit_rates` (0 to 1) by kind of read, facts about the `server` (sizes in bytes), and `keys` by kind.

    While the server is away, `server` is {"error": reason} and the others are empty. `warnings`
    says so if the server has evicted keys, as the index of a dependency may be among them.
    """
    report: dict[str, Any] = {
        "counters": {}, "hit_rates": {}, "server": {}, "keys": {}, "warnings": []
    }  # fmt: skip
    try:
        async with asyncio.timeout(_ANSWER_S):
            report["server"] = await _server_facts(cache)
        report["counters"] = await cache.totals() if cache.options.enabled else {}
        report["hit_rates"] = {
            each.kind: round(each.hit_rate, 4)
            for each in reads_of(report["counters"])
            if each.hit_rate is not None
        }
        report["keys"] = await count_keys(cache)
    except TimeoutError:
        report["server"] = {"error": f"the server did not answer within {_ANSWER_S:g} s"}
    except OUTAGE as exc:
        report["server"] = {"error": explain(exc)}
    if report["server"].get("evicted_keys"):
        report["warnings"].append(
            "the server has evicted keys: invalidating a dependency whose index is gone "
            "invalidates everything; raise its maxmemory"
        )
    return report


async def _server_facts(cache: Cache) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section, names in _SERVER_FACTS.items():
        facts = await cache.client.info(section)
        node = facts if names[0] in facts else next(iter(facts.values()))
        found |= {name: node[name] for name in names if name in node}
    return found


async def count_keys(cache: Cache, *, limit: int = MAX_COUNTED_KEYS) -> dict[str, int]:
    """Number of keys by kind. `uncounted` is 1 if there are more than `limit`."""
    counts: Counter[str] = Counter()
    prefix = cache.options.prefix
    async for key in cache.client.scan_iter(match=prefix + "*", count=_BATCH):
        if counts.total() >= limit:
            counts["uncounted"] = 1
            break
        counts[_kind(key.decode(errors="replace").removeprefix(prefix))] += 1
    return dict(counts)


def _kind(name: str) -> str:
    if not name.startswith("{"):
        return name.partition(":")[0]
    rest = name.rpartition("}")[2].removeprefix(":")
    if rest.startswith("messages:"):
        rest = "window " + rest.removeprefix("messages:")
    return rest.partition(":")[0].partition("@")[0] or "version"


async def invalidate(
    cache: Cache,
    *,
    agents: Sequence[str] = (),
    dependencies: Sequence[str] = (),
    tags: Sequence[str] = (),
    organisations: Sequence[str] = (),
    everything: bool = False,
    wait_s: float = _ANSWER_S,
) -> dict[str, Any]:
    """
    Invalidate what is named, with the agents' messages. `delivered` says whether it arrived.

    Undelivered invalidations are lost when the process ends, so this waits for the server, for
    up to `wait_s`. A caller that is told False invalidates again.
    """
    checked_agent_ids(agents)
    for what, given in (
        ("dependencies", dependencies), ("tags", tags), ("organisations", organisations)
    ):  # fmt: skip
        checked_names(what, given)
    await cache.agents.invalidate(*agents)
    for agent_id in agents:
        await cache.messages.invalidate(agent_id)
    await cache.agents.invalidate_dependency(*dependencies)
    await cache.agents.invalidate_tag(*tags)
    await cache.agents.invalidate_organisation(*organisations)
    if everything:
        await cache.invalidate_everything()
    delivered = cache.options.enabled
    try:
        async with asyncio.timeout(wait_s if delivered else 0):
            await cache.settled()
    except TimeoutError:
        delivered = False
    named = len(agents) + len(dependencies) + len(tags) + len(organisations) + int(everything)
    return {"named": named, "delivered": delivered}


async def warm(
    cache: Cache,
    agent_ids: Iterable[str],
    loader: Callable[[str], Awaitable[Any]],
    *,
    scope: str = "",
    at_once: int = 8,
) -> dict[str, int]:
    """
    Load missing states. Returns counts of `warmed` and `failed`.

    Loads nothing when nothing could be stored: the server is away, or the cache is off.
    """
    agent_ids = checked_agent_ids(agent_ids)
    if not cache.options.enabled or not cache.stats()["trusted"]:
        return {"warmed": 0, "failed": len(agent_ids)}
    return await cache.agents.warm(agent_ids, loader, scope=scope, at_once=at_once)
