"""Implements `letta-workers webhooks`: show and replay deliveries, ping, switch endpoints."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from worker.cli.support import json_option, show, with_queue
from worker.client import JobQueue
from worker.errors import InvalidArgument
from worker.webhooks.deliveries import Selection
from worker.webhooks.policy import ENDED, DeliveryState

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Moment(click.ParamType[datetime]):
    """Parses `2026-03-01T12:00:00+00:00` (UTC if it has no zone), or a time ago: `90m`, `2d`."""

    name = "time"

    def convert(self, value: Any, _param: Any, _ctx: Any) -> datetime:
        if isinstance(value, datetime):
            return value
        number, unit = value[:-1], value[-1:]
        if unit in _UNITS and number.isdigit():
            return datetime.now(UTC) - timedelta(seconds=int(number) * _UNITS[unit])
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time; accepted: 90m, 24h, 2d, 2026-03-01T12:00:00+00:00")
        return found if found.tzinfo else found.replace(tzinfo=UTC)


def _filters(command: Any) -> Any:
    """Add the options that select ended deliveries."""
    options = [
        click.option(
            "--since",
            type=Moment(),
            help="Ended at or after this time: ISO 8601, or 90m, 24h, 2d ago.",
        ),
        click.option("--until", type=Moment(), help="Ended before this time."),
        click.option(
            "--state",
            "states",
            multiple=True,
            type=click.Choice([state.value for state in ENDED]),
            help="Ended in this state; repeatable. Default: dead and disabled.",
        ),
        click.option("--event-type", help="Only this event type."),
        click.option("--url", help="Only to this URL."),
        click.option("--endpoint-id", help="Only to this endpoint id."),
        click.option("--limit", type=click.IntRange(1, 10_000), default=1000, show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _selection(
    *,
    since: datetime | None,
    until: datetime | None,
    states: tuple[str, ...],
    event_type: str | None,
    url: str | None,
    endpoint_id: str | None,
) -> Selection:
    chosen = tuple(DeliveryState(state) for state in states) or Selection().states
    return Selection(chosen, since, until, event_type, url, endpoint_id)


@click.group()
def webhooks() -> None:
    """Show and replay webhook deliveries; enable and disable endpoints."""


@webhooks.command("show")
@click.argument("delivery_id")
@json_option
def webhooks_show(delivery_id: str, as_json: bool) -> None:
    """Show one delivery with its attempts.

    \b
    Examples:
      letta-workers webhooks show msg_5f0c...
    """
    found = with_queue(lambda queue: queue.delivery(delivery_id)).to_dict()

    def lines() -> list[str]:
        names = ("id", "url", "event_type", "state", "target", "deadline", "replays")
        head = [f"{name}: {found[name]}" for name in names]
        if found["error"]:
            head.append(f"error: {found['error']}")
        rows = [
            f"  {n}. {a['time']}  status={a['status']}  error={a['error'] or '-'}  ms={a['ms']}"
            for n, a in enumerate(found["attempts"], 1)
        ]
        return [*head, f"next attempt: {found['next_attempt_at'] or '-'}", "attempts:", *rows]

    show(found, as_json, lines)


@webhooks.command("list")
@_filters
@json_option
def webhooks_list(limit: int, as_json: bool, **filters: Any) -> None:
    """List ended deliveries; by default, those that are dead or disabled.

    \b
    Examples:
      letta-workers webhooks list --since 24h
      letta-workers webhooks list --state delivered --event-type run.completed --json
    """
    wanted = _selection(**filters)

    async def read(queue: JobQueue) -> list[dict[str, Any]]:
        ids = await queue.webhooks.find(wanted, limit=limit)
        return [(await queue.delivery(id_)).to_dict() for id_ in ids]

    found = with_queue(read)
    rows = [
        f"{d['id']}  {d['state']}  {d['ended_at']}  {d['event_type']}  {d['url']}  "
        f"attempts={d['attempt_count']}  status={d['status']}  error={d['error'] or '-'}"
        for d in found
    ]
    show(found, as_json, lambda: rows or ["none"])


@webhooks.command("replay")
@click.argument("delivery_ids", nargs=-1)
@_filters
@click.option("--rate", type=click.FloatRange(0.01, 10_000), help="Most deliveries per second.")
@json_option
def webhooks_replay(
    delivery_ids: tuple[str, ...], limit: int, rate: float | None, as_json: bool, **filters: Any
) -> None:
    """Send ended deliveries again with the same ids: those given, or all that the options select.

    They are sent with priority low, at most LETTA_WEBHOOK_REPLAY_RATE per second, so that new
    events go first. Deliveries to a disabled endpoint are skipped: enable the endpoint before.

    \b
    Examples:
      letta-workers webhooks replay msg_5f0c...
      letta-workers webhooks replay --since 24h
      letta-workers webhooks replay --since 2d --state delivered --url https://example.com/hooks
    """
    if not delivery_ids and not any(filters.values()):
        raise click.UsageError("give delivery ids, or select them: --since, --state, --url, ...")
    wanted = _selection(**filters)

    async def replay(queue: JobQueue) -> dict[str, int]:
        if not delivery_ids:
            return await queue.webhooks.replay_many(wanted, limit=limit, rate=rate)
        for id_ in delivery_ids:
            await queue.webhooks.replay(id_)
        return {"replayed": len(delivery_ids)}

    counts = with_queue(replay)
    lines = [f"{name}: {count}" for name, count in counts.items() if count or name == "replayed"]
    show(counts, as_json, lambda: lines)


@webhooks.command("ping")
@click.argument("url")
@click.option("--endpoint-id", help="Endpoint id to send it with.")
@json_option
def webhooks_ping(url: str, endpoint_id: str | None, as_json: bool) -> None:
    """Send a test event of type `ping`, and print its delivery id for `webhooks show`.

    \b
    Examples:
      letta-workers webhooks ping https://example.com/hooks
    """
    id_ = with_queue(lambda queue: queue.webhooks.ping(url, endpoint_id=endpoint_id))
    show({"id": id_}, as_json, lambda: [id_])


@webhooks.command("endpoints")
@json_option
def webhooks_endpoints(as_json: bool) -> None:
    """List disabled endpoints, and the latest events of endpoints and circuit breakers.

    \b
    Examples:
      letta-workers webhooks endpoints
    """

    async def read(queue: JobQueue) -> dict[str, Any]:
        events = await queue.webhooks.events(limit=1000)
        return {
            "disabled": [found.to_dict() for found in await queue.webhooks.disabled_endpoints()],
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
        rows += [f"{e['time']}  {e['kind']}  {e['subject']}" for e in found["events"]]
        return rows or ["no disabled endpoints, no events"]

    show(found, as_json, lines)


def _endpoint_options(command: Any) -> Any:
    command = click.option("--endpoint-id", help="Endpoint id instead of a URL.")(command)
    return click.argument("url", required=False, default="")(command)


@webhooks.command("enable")
@_endpoint_options
@json_option
def webhooks_enable(url: str, endpoint_id: str | None, as_json: bool) -> None:
    """Enable an endpoint. To send what it missed: `webhooks replay --state disabled`.

    \b
    Examples:
      letta-workers webhooks enable https://example.com/hooks
    """
    _switch(url, endpoint_id, on=True, as_json=as_json)


@webhooks.command("disable")
@_endpoint_options
@json_option
def webhooks_disable(url: str, endpoint_id: str | None, as_json: bool) -> None:
    """Disable an endpoint. Its deliveries end as `disabled` and can be replayed later.

    \b
    Examples:
      letta-workers webhooks disable --endpoint-id tenant-7
    """
    _switch(url, endpoint_id, on=False, as_json=as_json)


@webhooks.command("target")
@_endpoint_options
@json_option
def webhooks_target(url: str, endpoint_id: str | None, as_json: bool) -> None:
    """Show the limits of a URL's host or of an endpoint id: breaker, pause, concurrency.

    \b
    Examples:
      letta-workers webhooks target https://example.com/hooks
    """
    _require_one(url, endpoint_id)
    found = with_queue(lambda queue: queue.webhooks.target(url, endpoint_id=endpoint_id)).to_dict()
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
        raise InvalidArgument("give either a URL or --endpoint-id")
