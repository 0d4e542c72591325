"""Jobs for tests, loaded by LETTA_WORKER_FUNCTIONS."""

from __future__ import annotations

import asyncio
from typing import Any

from settings import get_settings


async def add(_ctx: dict[str, Any], a: int, b: int = 0) -> int:
    return a + b


async def echo(_ctx: dict[str, Any], value: Any) -> Any:
    return value


async def explode(_ctx: dict[str, Any]) -> None:
    raise ValueError("as asked")


async def explode_with_a_secret(_ctx: dict[str, Any]) -> None:
    key = get_settings().openai_api_key
    clear = key.get_secret_value() if key is not None else ""
    raise ValueError(f"as asked, with a key of {len(clear)} characters")


async def context(ctx: dict[str, Any]) -> dict[str, Any]:
    return {key: ctx[key] for key in ("job_id", "job_try", "worker_id")}


async def wait_forever(_ctx: dict[str, Any]) -> None:
    await asyncio.Event().wait()


async def unencodable(_ctx: dict[str, Any]) -> object:
    return object()


not_a_coroutine = 1

FUNCTIONS = ",".join(
    f"{__name__}:{name}"
    for name in (
        "add",
        "echo",
        "explode",
        "explode_with_a_secret",
        "context",
        "wait_forever",
        "unencodable",
    )
)
