"""Implements `letta-workers endpoints`, and the endpoints' part of `letta-workers webhooks`."""

from __future__ import annotations

from typing import Any

import click

from settings import read_settings
from worker.cli.support import json_option, show, with_queue
from worker.client import JobQueue


@click.command("endpoints")
@json_option
def webhooks_endpoints(as_json: bool) -> None:
    """List disabled and failing endpoints, and the latest events of endpoints.

    A failing one is shown with its failures in a row, and how many of them open its breaker.

    \b
    Examples:
      letta-workers endpoints              # the same as: letta-workers webhooks endpoints
    """

    async def read(queue: JobQueue) -> dict[str, Any]:
        events = await queue.webhooks.events(limit=1000)
        return {
            "disabled": [found.to_dict() for found in await queue.webhooks.disabled_endpoints()],
            "failing": [found.to_dict() for found in await queue.webhooks.failing_endpoints()],
            "breaker_failures": read_settings().webhook_breaker_failures,
            "events": [
                {"time": event.time.isoformat(), "kind": event.kind, "subject": event.subject}
                for event in events[-50:]
            ],
        }

    found = with_queue(read)

    def lines() -> list[str]:
        rows = [
            f"disabled  {d['name']}  {d['reason']}  {d['disabled_at']}" for d in found["disabled"]
        ]
        rows += [
            f"failing  {f['name']}  failures={f['failures']} of {found['breaker_failures']}  "
            f"breaker={f['breaker']}  parked={f['parked']}  since={f['failing_since']}"
            for f in found["failing"]
        ]
        rows += [f"{e['time']}  {e['kind']}  {e['subject']}" for e in found["events"]]
        return rows or ["no disabled or failing endpoints, no events"]

    show(found, as_json, lines)


def _endpoint_options(command: Any) -> Any:
    command = click.option("--endpoint-id", help="Endpoint id instead of a URL.")(command)
    return click.argument("url", required=False, default="")(command)


@click.command("enable")
@_endpoint_options
@json_option
def webhooks_enable(url: str, endpoint_id: str | None, as_json: bool) -> None:
    """Enable an endpoint. To send what it missed: `webhooks replay --state disabled`.

    \b
    Examples:
      letta-workers webhooks enable https://example.com/hooks
    """
    _switch(url, endpoint_id, on=True, as_json=as_json)


@click.command("disable")
@_endpoint_options
@json_option
def webhooks_disable(url: str, endpoint_id: str | None, as_json: bool) -> None:
    """Disable an endpoint. Its deliveries end as `disabled` and can be replayed later.

    \b
    Examples:
      letta-workers webhooks disable --endpoint-id tenant-7
    """
    _switch(url, endpoint_id, on=False, as_json=as_json)


@click.command("endpoint")
@_endpoint_options
@json_option
def webhooks_endpoint(url: str, endpoint_id: str | None, as_json: bool) -> None:
    """Show what holds an endpoint back: breaker, failures in a row, pause, slots; and its host's.

    \b
    Examples:
      letta-workers webhooks endpoint https://example.com/hooks
    """
    _require_one(url, endpoint_id)

    async def read(queue: JobQueue) -> dict[str, Any]:
        found = await queue.webhooks.endpoint(url, endpoint_id=endpoint_id)
        shown = {**found.to_dict(), "breaker_failures": read_settings().webhook_breaker_failures}
        if url:
            host = await queue.webhooks.host(url)
            shown |= {
                "host": host.name,
                "host_sending": host.sending,
                "host_waiting": host.waiting,
            }
        return shown

    found = with_queue(read)
    show(found, as_json, lambda: [f"{name}: {value}" for name, value in found.items()])


def _switch(url: str, endpoint_id: str | None, *, on: bool, as_json: bool) -> None:
    _require_one(url, endpoint_id)

    async def switch(queue: JobQueue) -> bool:
        act = queue.webhooks.enable if on else queue.webhooks.disable
        return await act(url, endpoint_id=endpoint_id)

    changed = with_queue(switch)
    word = "enabled" if on else "disabled"
    show({"changed": changed}, as_json, lambda: [word if changed else f"was already {word}"])


def _require_one(url: str, endpoint_id: str | None) -> None:
    if bool(url) == (endpoint_id is not None):
        raise click.UsageError("give either a URL or --endpoint-id")


COMMANDS = (webhooks_endpoints, webhooks_endpoint, webhooks_enable, webhooks_disable)
