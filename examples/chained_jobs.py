"""
Runs jobs after other jobs: `then` after one, `gather` after many.

    .venv/bin/python -m examples.chained_jobs

The following job is stored in the same step that ends the job before it, so a
crash loses neither.
"""

from __future__ import annotations

from typing import Any

from examples.running import run
from letta_redis import call, open_queue

DOCUMENTS = {"a.txt": "to be or not to be", "b.txt": "the rest is silence"}


async def read_document(_ctx: dict[str, Any], name: str) -> str:
    return DOCUMENTS[name]


async def count_words(_ctx: dict[str, Any], text: str, *, unit: str = "words") -> str:
    """After `then`, the first argument is the result of the job before."""
    return f"{len(text.split())} {unit}"


async def merge(_ctx: dict[str, Any], texts: list[str]) -> str:
    """After `gather`, the first argument is the list of results, in the order of the calls."""
    return " / ".join(texts)


async def main() -> None:
    async with open_queue() as queue:
        read = await queue.enqueue(
            "read_document", "a.txt", then=call("count_words", unit="words", job_id="count:a.txt")
        )
        # When the first job has its result, the following job exists.
        await read.result(timeout_s=60)
        print("chained:", await queue.jobs.get("count:a.txt").result(timeout_s=60))

        parts = [call("read_document", name, job_id=f"read:{name}") for name in DOCUMENTS]
        merged = await queue.jobs.gather(parts, then=call("merge"))
        for part in parts:
            await queue.jobs.get(part.job_id or "").result(timeout_s=60)
        print("gathered:", await merged.result(timeout_s=60))


if __name__ == "__main__":
    names = ("read_document", "count_words", "merge")
    run(main, worker_functions=",".join(f"examples.chained_jobs:{name}" for name in names))
