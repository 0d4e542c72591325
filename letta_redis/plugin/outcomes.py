"""
Writes the outcome of each stored callback into Letta's columns, and finds lost ones.

`arq:letta:callbacks` holds the ids of open callbacks by the time of their next look. Any
server of the fleet takes those that are due; a key with a TTL gives each to one server at
a time. An outcome is written at least once, and only over the code 202. Every few minutes
one server sweeps the tables for what a crash left behind: ended runs and jobs without a
callback, and codes 202 that nobody looks at.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from cache.logs import get_logger
from letta_redis.plugin import receivers, rows
from worker.errors import NotFound
from worker.keys import QUEUE_TAG, QueueKeys
from worker.webhooks.policy import ENDED
from worker.webhooks.records import Delivery

if TYPE_CHECKING:
    from settings import Settings
    from worker.client import JobQueue

log = get_logger("letta_redis")

_LOOK_S = 1.0
_MOST_LOOKS = 50
# Longest pause between two looks at a callback whose receiver is away.
_PAUSE_MAX_S = 60.0
# A server has this long to write an outcome; then another may.
_HOLD_MS = 30_000
# A caller that has not noted 202 after this time has died.
_UNNOTED_S = 300.0
SWEEP_S = 300.0
_MOST_SWEPT = 200


class Outcomes:
    """One server's part in following the callbacks of the fleet."""

    def __init__(
        self, queue: JobQueue, client: Any, *, is_on: Callable[[], bool], counts: Counter[str]
    ) -> None:
        self.queue = queue
        self._is_on = is_on
        self._counts = counts
        self._client = client
        self._keys = QueueKeys.of(client)

    async def expect(self, webhook_id: str) -> None:
        """Follow a callback. Call this before it is stored, so that none is missed."""
        await self._client.zadd(
            self._keys.letta_callbacks, {webhook_id: _now_ms() + 1000 * _LOOK_S}, nx=True
        )

    async def store(self, kind: rows.Kind, info: Mapping[str, Any]) -> bool:
        """
        Store the callback of a run or a job. False if the queue refuses.

        Its id consists of the run's id and its status: two updates to one status post once.
        """
        status = rows.text_of(info["status"])
        webhook_id = f"{info[f'{kind}_id']}:{status}"
        try:
            await self.expect(webhook_id)
            await self.queue.send_webhook(
                info["callback_url"],
                rows.payload_of(kind, info),
                event_type=f"{kind}.{status}",
                webhook_id=webhook_id,
            )
        except Exception as exc:  # noqa: BLE001  (Letta posts it itself)
            self.posted_inline(webhook_id, exc)
            return False
        self._counts["stored"] += 1
        return True

    def posted_inline(self, webhook_id: str, reason: Exception) -> None:
        """Count and log a callback that the queue refused."""
        name = type(reason).__name__
        self._counts[f"inline: {name}"] += 1
        log.warning("letta.callback_inline", webhook_id=webhook_id, reason=name, error=str(reason))

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Write outcomes and sweep until the block ends."""
        tasks = [
            asyncio.ensure_future(self._repeat(self.look, _LOOK_S)),
            asyncio.ensure_future(self._repeat(self._sweep_in_turn, SWEEP_S / 5)),
        ]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _repeat(self, step: Any, pause_s: float) -> None:
        failed = False
        while True:
            try:
                if self._is_on():
                    await step()
                failed = False
            except Exception as exc:  # noqa: BLE001  (the next round repeats it)
                if not failed:
                    log.warning("letta.outcomes_failed", step=step.__name__, error=repr(exc))
                failed = True
            await asyncio.sleep(pause_s)

    # -- outcomes ----------------------------------------------------------------------

    async def look(self) -> int:
        """Look at the callbacks that are due, and write the outcomes of those that have ended."""
        due = await self._client.zrange(
            self._keys.letta_callbacks, "-inf", _now_ms(), byscore=True, offset=0, num=_MOST_LOOKS
        )
        ids = [id_.decode(errors="replace") for id_ in due]
        async with self._client.pipeline(transaction=False) as pipe:
            for id_ in ids:
                pipe.set(self._keys.letta_callback_held(id_), b"1", nx=True, px=_HOLD_MS)
            held = await pipe.execute() if ids else []
        mine = [id_ for id_, is_mine in zip(ids, held, strict=True) if is_mine]
        await asyncio.gather(*map(self._look_safely, mine))
        # A forged id that is not UTF-8 has no key, so no look would ever remove it.
        odd = [id_ for id_ in due if id_.decode(errors="replace").encode() != id_]
        if odd:
            await self._client.zrem(self._keys.letta_callbacks, *odd)
        return len(mine)

    async def _look_safely(self, webhook_id: str) -> None:
        """Look at one callback. If that fails, it goes behind the others, so that it delays none."""
        try:
            await self._look_at(webhook_id)
        except Exception as exc:  # noqa: BLE001  (whatever a forged record or the database raises)
            later = _now_ms() + 1000 * _PAUSE_MAX_S
            await self._client.zadd(self._keys.letta_callbacks, {webhook_id: later}, xx=True)
            log.warning("letta.outcome_failed", webhook_id=webhook_id, error=repr(exc))

    async def _look_at(self, webhook_id: str) -> None:
        delivery: Delivery | None
        try:
            delivery = await self.queue.delivery(webhook_id)
        except NotFound:
            delivery = None
        again_s = _pause_s(delivery)
        if delivery is None or delivery.state in ENDED:
            owner = webhook_id.rpartition(":")[0]
            noted = await rows.write_outcome(owner, delivery, unnoted_s=_UNNOTED_S)
            again_s = 0.0 if noted else _LOOK_S
        keys = self._keys
        async with self._client.pipeline(transaction=True) as pipe:
            if again_s:
                pipe.zadd(keys.letta_callbacks, {webhook_id: _now_ms() + 1000 * again_s}, xx=True)
            else:
                pipe.zrem(keys.letta_callbacks, webhook_id)
            pipe.delete(keys.letta_callback_held(webhook_id))
            await pipe.execute()

    # -- what a crash left behind ------------------------------------------------------

    async def _sweep_in_turn(self) -> None:
        if await self._client.set(self._keys.letta_sweep, b"1", nx=True, px=round(1000 * SWEEP_S)):
            await self.sweep()

    async def sweep(self, *, older_than_s: float = 60.0) -> int:
        """Store the callbacks that were never sent, and look at those without an outcome."""
        sent = 0
        for kind in rows.KINDS:
            for info in await rows.unsent(kind, older_than_s=older_than_s, limit=_MOST_SWEPT):
                if await self.store(kind, info):
                    await rows.note_stored(kind, info[f"{kind}_id"])
                    sent += 1
            waiting = await rows.without_outcome(
                kind, older_than_s=max(older_than_s, _UNNOTED_S), limit=_MOST_SWEPT
            )
            await self._expect_all(waiting)
        if sent:
            log.info("letta.callbacks_swept", count=sent)
        return sent

    async def _expect_all(self, webhook_ids: Sequence[str]) -> None:
        if webhook_ids:
            now = _now_ms()
            await self._client.zadd(
                self._keys.letta_callbacks, dict.fromkeys(webhook_ids, now), nx=True
            )


@asynccontextmanager
async def open_outcomes(
    settings: Settings, *, is_on: Callable[[], bool], counts: Counter[str]
) -> AsyncIterator[Outcomes]:
    """Open the queue, and write outcomes until the block ends, while `is_on()`."""
    from cache.connection.pool import open_pool
    from cache.opening import pool_options
    from worker import open_queue

    options = pool_options(settings)
    pool = open_pool(settings.redis_url, options, name="letta-callbacks", tag=QUEUE_TAG)
    async with open_queue(settings) as queue, pool as client:
        outcomes = Outcomes(queue, client, is_on=is_on, counts=counts)
        warning = asyncio.ensure_future(_warn(settings))
        try:
            async with outcomes.followed():
                yield outcomes
        finally:
            warning.cancel()
            await asyncio.gather(warning, return_exceptions=True)


async def _warn(settings: Settings) -> None:
    try:
        await receivers.warn_of_refused(settings)
    except Exception as exc:  # noqa: BLE001  (nothing depends on the warning)
        log.warning("letta.outcomes_failed", step="warn_of_refused", error=repr(exc))


def _pause_s(delivery: Delivery | None) -> float:
    """The seconds until shortly after the next attempt, at most a minute."""
    if delivery is None or delivery.next_attempt_at is None:
        return _LOOK_S
    ahead = delivery.next_attempt_at.timestamp() - time.time()
    return min(max(_LOOK_S, ahead + 0.5), _PAUSE_MAX_S)


def _now_ms() -> int:
    return int(time.time() * 1000)
