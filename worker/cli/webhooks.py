"""Implements `letta-workers webhooks`: show, list, retry and replay deliveries."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import click

from worker.cli import endpoints
from worker.cli.ping import webhooks_ping
from worker.cli.support import json_option, show, with_queue
from worker.client import JobQueue
from worker.webhooks.policy import DeliveryState
from worker.webhooks.records import REMEDIES, Delivery
from worker.webhooks.selection import Selection

_PENDING = (DeliveryState.PENDING, DeliveryState.WAITING, DeliveryState.SENDING)
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
    """Add the options that select deliveries."""
    options = [
        click.option(
            "--since",
            type=Moment(),
            help="Ended at or after this time (open: sent): ISO 8601, or 90m, 24h, 2d ago.",
        ),
        click.option("--until", type=Moment(), help="Ended (open: sent) before this time."),
        click.option(
            "--state",
            "states",
            multiple=True,
            type=click.Choice([state.value for state in DeliveryState]),
            help="In this state; repeatable. Default: dead and disabled.",
        ),
        click.option("--event-type", help="Only this event type."),
        click.option("--url", help="Only to this URL."),
        click.option("--endpoint-id", help="Only to this endpoint id."),
        click.option(
            "--limit",
            type=click.IntRange(1, 10_000),
            default=1000,
            show_default=True,
            help="Deliveries at most.",
        ),
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
    """Show, retry and replay webhook deliveries; show, enable and disable endpoints."""


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
        names = ("id", "url", "event_type", "state", "host", "endpoint", "deadline", "replays")
        head = [f"{name}: {found[name]}" for name in names]
        if found["error"]:
            head.append(f"error: {found['error']}")
        if found["remedy"]:
            head.append(f"remedy: {found['remedy']}")
        rows = [
            f"  {n}. {a['time']}  status={a['status']}  error={a['error'] or '-'}  ms={a['ms']}"
            for n, a in enumerate(found["attempts"], 1)
        ]
        return [*head, f"next attempt: {found['next_attempt_at'] or '-'}", "attempts:", *rows]

    show(found, as_json, lines)


@webhooks.command("list")
@_filters
@click.option(
    "--pending", is_flag=True, help="Those that have not ended: pending, waiting, sending."
)
@json_option
def webhooks_list(limit: int, pending: bool, as_json: bool, **filters: Any) -> None:
    """List deliveries; by default, those that are dead or disabled.

    \b
    Examples:
      letta-workers webhooks list --since 24h
      letta-workers webhooks list --pending --url https://example.com/hooks
      letta-workers webhooks list --state delivered --event-type run.completed --json
    """
    if pending:
        filters["states"] = (*filters["states"], *(state.value for state in _PENDING))
    wanted = _selection(**filters)

    async def read(queue: JobQueue) -> list[Delivery]:
        ids = await queue.webhooks.find(wanted, limit=limit)
        return [await queue.delivery(id_) for id_ in ids]

    found = with_queue(read)
    show([d.to_dict() for d in found], as_json, lambda: _lines(found) or ["none"])


def _lines(found: list[Delivery]) -> list[str]:
    rows = []
    for d in found:
        at = f"next={_iso(d.next_attempt_at)}" if d.ended_at is None else _iso(d.ended_at)
        rows.append(
            f"{d.id}  {d.state}  {at}  {d.event_type}  {d.url}  attempts={d.attempt_count}  "
            f"status={d.status}  error={d.error or '-'}"
        )
    errors = sorted({d.error for d in found} & REMEDIES.keys())
    return rows + [f"{error}: {REMEDIES[error]}" for error in errors]


def _iso(moment: datetime | None) -> str:
    return "-" if moment is None else moment.isoformat()


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


@webhooks.command("retry")
@click.argument("delivery_ids", nargs=-1, required=True)
@json_option
def webhooks_retry(delivery_ids: tuple[str, ...], as_json: bool) -> None:
    """Make the next attempt of waiting deliveries due now, also behind an open breaker.

    \b
    Examples:
      letta-workers webhooks retry msg_5f0c...
    """

    async def retry(queue: JobQueue) -> int:
        for id_ in delivery_ids:
            await queue.webhooks.retry_now(id_)
        return len(delivery_ids)

    count = with_queue(retry)
    show({"retried": count}, as_json, lambda: [f"retried: {count}"])


for _command in (*endpoints.COMMANDS, webhooks_ping):
    webhooks.add_command(_command)
