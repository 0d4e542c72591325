"""Opens the plug-in before the Letta server's first write, and closes it when the server ends."""

from __future__ import annotations

import os
from functools import wraps
from typing import Any

from letta_redis.plugin.runtime import Runtime
from letta_redis.plugin.seams import Feature, Seam


def _opening(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def init_async(*args: Any, **kwargs: Any) -> Any:
        await runtime.start()
        return await original(*args, **kwargs)

    return init_async


def _closing(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def shutdown_scheduler_and_release_lock() -> None:
        try:
            await original()
        finally:
            await runtime.stop()

    return shutdown_scheduler_and_release_lock


def serve(host: str, port: int, *, secure: bool = False) -> None:
    """Run the server until it is told to end, as `letta server` does, with the plug-in."""
    if secure:  # every process of the server reads it
        os.environ["LETTA_SERVER_SECURE"] = "true"
    import uvicorn
    from letta.settings import settings

    uvicorn.run(
        "letta_redis.server:app",
        host=host,
        port=port,
        workers=settings.uvicorn_workers,
        reload=settings.uvicorn_reload,
        timeout_keep_alive=settings.uvicorn_timeout_keep_alive,
        access_log=False,
    )


FEATURE = Feature(
    "serving",
    None,
    (
        Seam(
            "letta.server.server:SyncServer.init_async",
            "opens the plug-in at the start",
            "(self, init_with_default_org_and_user=True)",
            digests=("616e0134de261c56",),
            replace=_opening,
        ),
        Seam(
            "letta.jobs.scheduler:shutdown_scheduler_and_release_lock",
            "closes the plug-in at the end",
            "()",
            digests=("cd01345aad2fccd9",),
            replace=_closing,
        ),
    ),
)
