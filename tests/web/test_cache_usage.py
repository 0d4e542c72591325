"""Hit rates of the cache: the same in the API, in the metrics and on the page, for all processes."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cache.connection.pool import PoolOptions, open_pool
from cache.opening import open_usage
from cache.usage import CacheUsage, UsageReader, read_usage
from settings import load_settings
from tests.support.caches import Loader, cache_on
from tests.support.clusters import cluster
from tests.support.queues import queue_of
from tests.support.servers import free_port
from tests.support.web import OPEN, serving
from worker.web.site import Site

pytestmark = pytest.mark.integration


async def use(url: str, prefix: str, *, hits: int, misses: int) -> None:
    """One process that uses the cache, and closes it."""
    async with cache_on(url, prefix) as cache:
        for n in range(misses):
            await cache.agents.get_or_load(f"a{n}", Loader({"n": n}))
        for _ in range(hits):
            assert await cache.agents.get("a0") == {"n": 0}
            await cache.messages.get_many(["absent"], scope="o")


async def asked(client: Any, prefix: str, usage: UsageReader | None, *paths: str) -> list[Any]:
    async with (
        serving(Site(queue_of(client, prefix), OPEN, cache=usage)) as url,
        httpx.AsyncClient(base_url=url, timeout=30) as web,
    ):
        return [await web.get(path) for path in paths]


async def test_all_processes_count_and_every_view_agrees(
    client: Any, valkey_url: str, prefix: str
) -> None:
    cache_prefix = prefix + "lc:"
    await use(valkey_url, cache_prefix, hits=5, misses=1)
    await use(valkey_url, cache_prefix + "other:", hits=9, misses=9)
    await use(valkey_url, cache_prefix, hits=3, misses=1)
    usage = partial(read_usage, client, cache_prefix)
    api, metrics, page = await asked(client, prefix, usage, "/api/cache", "/metrics", "/")
    found = api.json()
    values, windows, messages = found["reads"]
    # The second process finds the first one's value.
    assert (values["hits"], values["misses"]) == (9, 1)
    assert values["hit_rate"] == pytest.approx(0.9)
    assert windows == {"kind": "windows", "hits": 0, "misses": 0, "hit_rate": None}
    assert (messages["hits"], messages["misses"]) == (0, 8)
    assert found["loads"] == 1
    assert found["memory_used_bytes"] > 0
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text)
        for sample in family.samples
    }
    assert samples["letta_cache_reads_total", "values", "hit"] == 9
    assert samples["letta_cache_reads_total", "messages", "miss"] == 8
    assert samples["letta_cache_loads_total",] == 1
    assert samples["letta_cache_server_memory_used_bytes",] > 0
    assert "90.0 %" in page.text
    assert "no reads" in page.text


async def test_an_outage_of_the_cache_holds_up_nothing_else(client: Any, prefix: str) -> None:
    async def hangs() -> CacheUsage:
        await asyncio.Event().wait()
        raise AssertionError

    address = f"redis://127.0.0.1:{free_port()}"
    async with open_pool(address, PoolOptions(retries=0), name="t") as away:
        for usage in (partial(read_usage, away), hangs):
            api, metrics, page = await asked(client, prefix, usage, "/api/cache", "/metrics", "/")
            assert api.status_code == 503
            assert "the cache's server" in api.json()["error"]["message"]
            assert metrics.status_code == 200
            assert "letta_queue_jobs_due" in metrics.text
            assert "letta_cache" not in metrics.text
            assert page.status_code == 200
            assert "hit rate" not in page.text


async def test_without_a_cache_the_answer_says_so(client: Any, prefix: str) -> None:
    api, metrics, page = await asked(client, prefix, None, "/api/cache", "/metrics", "/")
    assert api.status_code == 404
    assert "LETTA_USE_AGENT_CACHE" in api.json()["error"]["message"]
    assert (metrics.status_code, page.status_code) == (200, 200)


async def test_a_foreign_key_in_the_place_of_the_counters_is_told(client: Any, prefix: str) -> None:
    await client.set(prefix + "lc:counters", "no hash")
    usage = partial(read_usage, client, prefix + "lc:")
    api, metrics = await asked(client, prefix, usage, "/api/cache", "/metrics")
    assert api.status_code == 503
    assert "WRONGTYPE" in api.json()["error"]["message"]
    assert metrics.status_code == 200


async def test_a_counter_that_is_no_number_counts_as_none(
    client: Any, valkey_url: str, prefix: str
) -> None:
    hostile = {b"hits": b"nan", b"misses": b"-3", b"loads": b"9" * 5000, b"\xff": b"1"}
    await client.hset(prefix + "lc:counters", mapping={**hostile, b"message_hits": b"2"})
    found = await read_usage(client, prefix + "lc:")
    assert [(each.hits, each.misses) for each in found.reads] == [(0, 0), (0, 0), (2, 0)]
    assert found.loads == 0
    async with cache_on(valkey_url, prefix + "lc:") as cache:
        totals = await cache.totals()
    assert (totals["hits"], totals["loads"], totals["message_hits"]) == (0, 0, 2)


async def test_the_usage_of_a_cluster_is_that_of_all_its_primaries(tmp_path: Path) -> None:
    most = 50_000_000
    async with cluster(tmp_path, "--maxmemory", str(most)) as nodes:
        await use(nodes.url, "lc:", hits=2, misses=1)
        settings = load_settings(redis_url="redis://127.0.0.1:1", cache_redis_url=nodes.url)
        async with open_usage(settings) as usage:
            found = await usage()
    assert found.memory_max_bytes == most * len(nodes.nodes)
    assert found.reads[0].hits == 2
