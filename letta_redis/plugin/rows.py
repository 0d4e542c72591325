"""Reads and writes the callback columns of Letta's runs and jobs, in Letta's own sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from cache.logs import get_logger
from worker.webhooks.policy import DeliveryState

if TYPE_CHECKING:
    from worker.webhooks.records import Delivery

log = get_logger("letta_redis")

Kind = Literal["run", "job"]
KINDS: tuple[Kind, ...] = ("run", "job")
# The code in Letta's columns while a stored callback has not ended.
STORED = 202
# `messages.py` of Letta stores the text of a callback URL that is not set.
NO_URL = "None"
# The states in which a run or job has ended.
ENDED: Mapping[Kind, tuple[str, ...]] = {
    "run": ("completed", "failed", "cancelled"),
    "job": ("completed", "failed", "cancelled", "expired"),
}
# How far back a sweep reads, by creation time: runs are indexed by it.
_SWEPT_DAYS = 8


def payload_of(kind: Kind, info: Mapping[str, Any]) -> dict[str, Any]:
    """The body of Letta's own post; values that JSON lacks are text."""
    completed_at = info["completed_at"]
    return {
        f"{kind}_id": info[f"{kind}_id"],
        "status": text_of(info["status"]),
        "completed_at": completed_at.isoformat() if completed_at else None,
        "metadata": jsonable(info["metadata"]),
    }


def jsonable(value: Any) -> Any:
    """Times, models and enums as pydantic encodes them; Letta's own post would fail on them."""
    from pydantic_core import to_jsonable_python

    return to_jsonable_python(value, serialize_unknown=True)


def text_of(status: Any) -> str:
    return str(getattr(status, "value", status))


def _model(kind: Kind) -> Any:
    from letta.orm.job import Job
    from letta.orm.run import Run

    return Run if kind == "run" else Job


def _session() -> Any:
    from letta.server.db import db_registry

    return db_registry.async_session()


async def write_outcome(owner: str, delivery: Delivery | None, *, unnoted_s: float) -> bool:
    """
    Write the outcome of a run's or job's callback. Return whether nothing is left to do.

    Replaces the code 202, and fills in a code that was not noted within `unnoted_s` seconds. If
    the server has lost the callback (`delivery` is None), clears the columns: a sweep sends it again.
    """
    kind: Kind = "run" if owner.startswith("run-") else "job"
    async with _session() as session:
        row = await session.get(_model(kind), owner, with_for_update=True)
        if row is None:
            return True
        if row.callback_status_code is None and row.callback_sent_at is None:
            if delivery is None:
                return True
            if _age_s(delivery.ended_at) < unnoted_s:
                return False
        elif row.callback_status_code != STORED:
            return True
        if delivery is None:
            row.callback_sent_at = row.callback_status_code = row.callback_error = None
            log.warning("letta.callback_lost", owner=owner)
        else:
            row.callback_sent_at = _naive(delivery)
            row.callback_status_code = delivery.status
            row.callback_error = _error(delivery)
    return True


async def note_stored(kind: Kind, owner: str) -> None:
    """Note the code 202, unless a code was noted meanwhile."""
    async with _session() as session:
        row = await session.get(_model(kind), owner, with_for_update=True)
        if row is not None and row.callback_sent_at is None:
            row.callback_sent_at = datetime.now(UTC).replace(tzinfo=None)
            row.callback_status_code = STORED


async def unsent(kind: Kind, *, older_than_s: float, limit: int) -> list[dict[str, Any]]:
    """Callbacks, as Letta dispatches them, of runs or jobs that ended without one; oldest first."""
    model = _model(kind)
    rows = await _ended(kind, older_than_s, limit, model.callback_sent_at.is_(None))
    found = []
    for row in rows:
        metadata = dict(row.metadata_ or {})
        if kind == "run":
            try:
                metadata["result"] = await _result(row)
            except Exception as exc:  # noqa: BLE001  (the receiver can ask for it by the run's id)
                log.warning("letta.callback_without_result", owner=row.id, error=repr(exc))
        found.append(
            {
                f"{kind}_id": row.id,
                "callback_url": row.callback_url,
                "status": row.status,
                "completed_at": row.completed_at,
                "metadata": metadata,
            }
        )
    return found


async def without_outcome(kind: Kind, *, older_than_s: float, limit: int) -> list[str]:
    """The webhook ids of stored callbacks without an outcome."""
    model = _model(kind)
    rows = await _ended(kind, older_than_s, limit, model.callback_status_code == STORED)
    return [f"{row.id}:{row.status}" for row in rows]


async def recent_urls(limit: int = 200) -> set[str]:
    """The callback URLs of the newest runs."""
    from sqlalchemy import select

    model = _model("run")
    newest = select(model.callback_url).order_by(model.created_at.desc()).limit(limit)
    async with _session() as session:
        return {url for url in await session.scalars(newest) if url not in (None, "", NO_URL)}


async def _ended(kind: Kind, older_than_s: float, limit: int, condition: Any) -> Sequence[Any]:
    from sqlalchemy import func, select

    model, now = _model(kind), datetime.now(UTC)
    ended_at = func.coalesce(func.timezone("UTC", model.completed_at), model.updated_at)
    query = (
        select(model)
        .where(
            model.created_at > now - timedelta(days=_SWEPT_DAYS),
            model.status.in_(ENDED[kind]),
            model.callback_url.is_not(None),
            model.callback_url.not_in(["", NO_URL]),
            ended_at < now - timedelta(seconds=older_than_s),
            condition,
        )
        .order_by(model.created_at)
        .limit(limit)
    )
    async with _session() as session:
        return list(await session.scalars(query))


async def _result(run: Any) -> Any:
    """
    The run's response, as `RunManager.update_run_by_id_async` builds it.

    That method fails for a run without a stop reason: it uses one that does not exist.
    """
    from letta.schemas.letta_response import LettaResponse
    from letta.schemas.letta_stop_reason import LettaStopReason
    from letta.schemas.user import User
    from letta.services.run_manager import RunManager

    actor = User(name="letta-redis", organization_id=run.organization_id)
    manager = RunManager()
    response = LettaResponse(
        messages=await manager.get_run_messages(run_id=run.id, actor=actor),
        stop_reason=LettaStopReason(stop_reason=run.stop_reason or "end_turn"),
        usage=await manager.get_run_usage(run_id=run.id, actor=actor),
    )
    return response.model_dump(mode="json")


def _naive(delivery: Delivery) -> datetime:
    last = delivery.attempts[-1].time if delivery.attempts else delivery.ended_at
    return (last or datetime.now(UTC)).astimezone(UTC).replace(tzinfo=None)


def _error(delivery: Delivery) -> str | None:
    if delivery.state is DeliveryState.DELIVERED:
        return None
    reason = delivery.error or delivery.state.value
    remedy = f"; {delivery.remedy}" if delivery.remedy else ""
    return f"not delivered after {delivery.attempt_count} attempts: {reason}{remedy}"


def _age_s(moment: datetime | None) -> float:
    return 0.0 if moment is None else (datetime.now(UTC) - moment).total_seconds()
