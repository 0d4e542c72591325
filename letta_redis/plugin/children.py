"""Installs the plug-in in the processes that the Letta server spawns for the tools of batches."""

from __future__ import annotations

from functools import partial
from typing import Any

from letta_redis.plugin.runtime import Runtime
from letta_redis.plugin.seams import Feature, Seam


def _installing(runtime: Runtime, original: Any) -> Any:
    return partial(original, initializer=runtime.install_in_child)


FEATURE = Feature(
    "children",
    "cache",
    (
        Seam(
            "letta.agents.letta_agent_batch:Pool",
            "installs the plug-in in spawned processes, so that their writes are announced",
            "(processes=None, initializer=None, initargs=(), maxtasksperchild=0, childconcurrency=16, "
            "queuecount=None, scheduler=None, loop_initializer=None, exception_handler=None)",
            replace=_installing,
        ),
    ),
)
