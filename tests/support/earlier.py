"""
Stores what an earlier release leaves on its server: `python -m tests.support.earlier FILE`.

Run it in a checkout of that release. It uses public names only, kills nothing, and
saves every key by DUMP while one job runs, as after the death of all workers.
`load` puts the keys onto a server of today, for tests/app/test_upgrade.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from cache.connection import embedded
from cache.connection.pool import PoolOptions, open_pool
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import JobQueue, Permanent, Priority, open_queue

# Nobody else listens on this address of the loopback network.
RECEIVER = ("127.83.17.5", 18765)
FUNCTIONS = ",".join(f"tests.support.earlier:{name}" for name in ("note", "hold", "refuse"))

ran: list[str] = []
# The earlier worker's hold() does not return; the one of today does.
held = asyncio.Event()


async def note(_ctx: dict[str, Any], text: str) -> str:
    ran.append(text)
    return text


async def hold(_ctx: dict[str, Any]) -> None:
    ran.append("hold")
    await held.wait()


async def refuse(_ctx: dict[str, Any]) -> None:
    raise Permanent("as asked")


def body(text: str) -> dict[str, Any]:
    return {"model": "a-model", "messages": [{"role": "user", "content": text}]}


async def _ended(queue: JobQueue) -> dict[str, str]:
    """What has a past: a dead letter, a kept result, a failed attempt, a job that runs."""
    dead = await queue.enqueue("refuse")
    done = await queue.enqueue("note", "done")
    tried = await queue.send_webhook(
        f"http://{RECEIVER[0]}:{RECEIVER[1]}/tried", {"n": 0}, event_type="earlier"
    )
    running = await queue.enqueue("hold")
    await done.result(timeout_s=30)
    await eventually(lambda: _is(queue.dead.get(dead.id)))
    await eventually(lambda: _has_attempt(queue, tried))
    await eventually(lambda: _is(_started("hold")))
    return {"dead": dead.id, "done": done.id, "tried": tried, "running": running.id}


async def _started(text: str) -> bool:
    return text in ran


async def _is(found: Any) -> bool:
    return bool(await found)


async def _has_attempt(queue: JobQueue, id_: str) -> bool:
    return bool((await queue.delivery(id_)).attempts)


async def _waiting(queue: JobQueue) -> dict[str, Any]:
    """What nobody has looked at: jobs of each priority, later ones, webhooks, LLM requests."""
    texts = [f"{priority.value} {n}" for priority in Priority for n in range(3)]
    for text in texts:
        await queue.enqueue("note", text, priority=Priority(text.split()[0]))
    await queue.enqueue("note", "later", delay_s=60)
    await queue.enqueue("note", "unique", unique="one of a kind")
    urls = [f"http://{RECEIVER[0]}:{RECEIVER[1]}/{n}" for n in range(3)]
    webhooks = [await queue.send_webhook(url, {"n": url}, event_type="earlier") for url in urls]
    asked = [f"question {n}" for n in range(3)]
    requests = {
        await queue.submit_llm_request(
            body(text), provider="openai", endpoint="/v1/chat/completions"
        ): text
        for text in asked
    }
    return {"texts": [*texts, "later", "unique"], "webhooks": webhooks, "requests": requests}


async def save() -> dict[str, Any]:
    url = embedded.acquire("embedded://")
    try:
        settings = quick_settings(
            url, worker_functions=FUNCTIONS, webhook_retry_base_s=30, worker_shutdown_grace_s=0.1
        )
        async with (
            open_queue(settings) as queue,
            open_pool(url, PoolOptions(), name="earlier") as client,
            running_worker(settings),
        ):
            ids: dict[str, Any] = await _ended(queue)
            for priority in Priority:
                await queue.pause(priority=priority)
            ids |= await _waiting(queue)
            keys = {
                base64.b64encode(key).decode(): [
                    base64.b64encode(await client.dump(key)).decode(),
                    max(await client.pttl(key), 0),
                ]
                async for key in client.scan_iter(count=1000)
            }
    finally:
        embedded.release("embedded://")
    return {"ids": ids, "keys": keys}


def main(path: Path) -> None:
    saved = asyncio.run(save())
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    path.write_text(json.dumps({"commit": commit, **saved}, indent=1) + "\n")


async def load(saved: Mapping[str, Any], client: Any) -> dict[str, Any]:
    """Put the saved keys onto this server. Return the ids of what they hold."""
    for key, (data, ttl_ms) in saved["keys"].items():
        await client.restore(base64.b64decode(key), ttl_ms, base64.b64decode(data))
    ids: dict[str, Any] = saved["ids"]
    return ids


if __name__ == "__main__":
    # The worker loads its functions by the module's own name.
    import_module("tests.support.earlier").main(Path(sys.argv[1]))
