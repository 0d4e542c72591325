"""Implements `letta-workers batches`: list, show, flush, cancel and retry LLM batches; raw answers."""

from __future__ import annotations

import json
from typing import Any

import click

from worker.cli.support import json_option, show, with_queue
from worker.client import JobQueue

_COLUMNS = ("state", "requests", "succeeded", "failed", "moved", "outstanding")


@click.group()
def batches() -> None:
    """List, show, flush, cancel and retry LLM batches."""


@batches.command("list")
@click.option(
    "--limit",
    type=click.IntRange(1, 10_000),
    default=20,
    show_default=True,
    help="Batches at most.",
)
@json_option
def batches_list(limit: int, as_json: bool) -> None:
    """List waiting requests by group, and the newest batches, newest first.

    \b
    Examples:
      letta-workers batches list
      letta-workers batches list --limit 1000 --json | jq '.batches[] | select(.state == "unconfirmed")'
    """

    async def read(queue: JobQueue) -> dict[str, Any]:
        found = await queue.llm.batches.list(limit=limit)
        return {"groups": await queue.llm.batches.groups(), "batches": found}

    found = with_queue(read)
    show(found, as_json, lambda: _table(found))


def _table(found: dict[str, Any]) -> list[str]:
    lines = [
        f"waiting: {row['waiting']['requests']} for {row['provider']} {row['endpoint']} {row['model']}"
        for row in found["groups"]
    ] or ["no request waits"]
    if not found["batches"]:
        return [*lines, "no batches"]
    lines.append(f"{'batch':<26}" + "".join(f"{name:>12}" for name in _COLUMNS) + "  model")
    lines += [
        f"{row['id']:<26}"
        + "".join(f"{row[name]:>12}" for name in _COLUMNS)
        + f"  {row['provider']}/{row['model']}"
        for row in found["batches"]
    ]
    return lines


@batches.command("show")
@click.argument("batch_id")
@json_option
def batches_show(batch_id: str, as_json: bool) -> None:
    """Show a batch: its state, the counts of its requests, its usage in tokens.

    `error` says why an open batch does not move, `provider_status` what the provider says of it.
    `ambiguous` counts submissions whose answer was lost. `billed_tokens` are the batch's tokens
    times LETTA_LLM_BATCH_PRICE_FACTOR.

    \b
    Examples:
      letta-workers batches show 3f0c6d2a9b1e4c7d8a5f6e0b
      letta-workers batches show 3f0c6d2a9b1e4c7d8a5f6e0b --json | jq .usage
    """
    found = with_queue(lambda queue: queue.llm.batches.get(batch_id))
    show(found, as_json, lambda: [f"{name:<18}{_text(value)}" for name, value in found.items()])


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return "-" if value is None else str(value)


@batches.command("flush")
@click.option(
    "--timeout-s",
    type=click.FloatRange(0, 3600),
    default=30,
    show_default=True,
    help="Seconds to wait for the outcome.",
)
@json_option
def batches_flush(timeout_s: float, as_json: bool) -> None:
    """Send every waiting LLM request now, and print how many batches that made.

    \b
    Examples:
      letta-workers batches flush
    """

    async def flush(queue: JobQueue) -> int:
        job = await queue.flush_llm_batches()
        return int(await job.result(timeout_s=timeout_s))

    made = with_queue(flush)
    show({"batches": made}, as_json, lambda: [f"{made} batches made"])


@batches.command("cancel")
@click.argument("batch_id", required=False)
@click.option(
    "--request", "request_id", help="Cancel one request, for every caller that shares it."
)
@click.option("--group", nargs=3, metavar="PROVIDER ENDPOINT MODEL", help="Cancel a whole group.")
@json_option
def batches_cancel(
    batch_id: str | None, request_id: str | None, group: tuple[str, str, str] | None, as_json: bool
) -> None:
    """Cancel a batch, one request, or everything in a group. Partial results are kept.

    \b
    Examples:
      letta-workers batches cancel 3f0c6d2a9b1e4c7d8a5f6e0b
      letta-workers batches cancel --request req_0f9a...
      letta-workers batches cancel --group openai chat/completions gpt-4o-mini
    """
    if sum(part is not None for part in (batch_id, request_id, group)) != 1:
        raise click.UsageError("give a batch id, --request or --group")

    async def cancel(queue: JobQueue) -> int:
        if group is not None:
            return await queue.llm.batches.cancel_group(*group)
        if request_id is not None:
            return int(await queue.llm.cancel(request_id, everybody=True))
        return int(await queue.llm.batches.cancel(str(batch_id)))

    ended = with_queue(cancel)
    show({"canceled": ended}, as_json, lambda: [f"{ended} canceled"])


@batches.command("came")
@click.argument("request_id")
@json_option
def batches_came(request_id: str, as_json: bool) -> None:
    """Print what the provider sent for a request that ended with the error `malformed`.

    It was paid for, so the request is not sent again until `batches retry` says so.

    \b
    Examples:
      letta-workers batches came req_0f9a...
    """
    came = with_queue(lambda queue: queue.llm.came(request_id))
    text = came.decode(errors="backslashreplace") if isinstance(came, bytes) else came
    as_text = text if isinstance(text, str) else json.dumps(text)
    show({"request": request_id, "came": text}, as_json, as_text.splitlines)


@batches.command("retry")
@click.argument("batch_id")
@json_option
def batches_retry(batch_id: str, as_json: bool) -> None:
    """Put a batch's failed requests into a new batch; poll an open batch now.

    \b
    Examples:
      letta-workers batches retry 3f0c6d2a9b1e4c7d8a5f6e0b
    """
    retried = with_queue(lambda queue: queue.llm.batches.retry(batch_id))
    show({"requests": retried}, as_json, lambda: [f"{retried} requests wait again"])
