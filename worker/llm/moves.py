"""
The base of a batch's run: transitions by compare-and-set, the end and its webhook.
"""

from __future__ import annotations

from dataclasses import replace

from cache.logs import get_logger
from worker.backoff import ceiling_s
from worker.errors import InvalidArgument
from worker.llm.batches import Batch
from worker.llm.context import LLMContext
from worker.llm.items import Items
from worker.llm.providers import Lines
from worker.llm.states import BatchState

log = get_logger(__name__)

# Interval of lookups for a lost submission and of second reads of incomplete results.
LOOK_AGAIN_S = 10.0
# So long after its upload or its end a batch's files may not be usable yet.
READY_S = 300.0
# Batches whose provider ids a lookup for a lost submission excludes.
_KNOWN_BATCHES = 10_000


class Overtaken(Exception):
    """A later run has begun; this run must stop."""


class Later(Exception):
    """Nothing to do for `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s


class Moves:
    """One run of a batch; `batch` reflects the transitions that this run made."""

    def __init__(self, context: LLMContext, batch: Batch) -> None:
        self.context = context
        self.batch = batch
        self.provider = context.providers[batch.group.provider]
        self.store = context.batches
        self.items = Items(context, batch)

    async def move(self, to: BatchState, **fields: str | int) -> None:
        """
        Change the batch's state.

        Raises:
            Overtaken: another run owns the batch.
            Later: it cannot end, because some of its requests are open.
        """
        fields = {"error": "", **fields}
        # Files are deleted only after all of their results are stored.
        then = self.context.prepared.files(self.batch.id) if to.is_end and self._has_files else None
        moved = await self.store.move(self.batch, to, then=then, **fields)
        if moved == 0:
            raise Overtaken
        if moved < 0:
            await self.store.drop_lost(self.batch.id)
            raise Later(LOOK_AGAIN_S)
        texts = {name: str(value) for name, value in fields.items()}
        self.batch = self.batch.moved(to, texts)
        self.items.batch = self.batch

    async def end(self, state: BatchState, *, error: str = "") -> str:
        """Change to an end state, as `move`, and notify the operator's webhook."""
        await self._notify_operator(state)
        await self.move(state, error=error)
        self.reached("ended")
        return state.value

    async def lines(self) -> Lines:
        """The lines that the batch sends: its requests without an answer."""
        batch = self.batch
        count, size = await self.store.sizes(batch.id)
        return Lines(
            batch.id,
            batch.group.endpoint,
            lambda: self.store.unanswered(batch.id),
            count=count,
            size=size,
        )

    async def taken(self) -> tuple[set[str], set[str]]:
        """
        Provider ids that certainly belong to other batches, and those that others only guessed.

        A guessed id may turn out to be this batch's when its results are read.
        """
        known = set(self.batch.fields.get("refused", "").split())
        guessed: set[str] = set()
        for other in await self.store.listed(_KNOWN_BATCHES):
            if other.id != self.batch.id and other.provider_id:
                is_open = other.is_guess and not other.state.is_end
                (guessed if is_open else known).add(other.provider_id)
        return known, guessed - known

    async def rescue(self) -> None:
        """Take the requests out of the batch whose deadline is near or has passed."""
        left_s = self.left_s()
        if left_s is None or left_s > 0:
            return
        self.batch = replace(self.batch, deadline_ms=await self.items.rescue())
        self.items.batch = self.batch

    async def note_error(self, error: str) -> None:
        """Store why the batch does not move, for the operator; the next transition clears it."""
        await self.store.note(self.batch.id, error=error, error_at=self.now_ms())

    def left_s(self) -> float | None:
        """Seconds until a request must leave the batch; None without a deadline."""
        if self.batch.deadline_ms is None:
            return None
        left_ms = self.batch.deadline_ms - self.now_ms()
        return left_ms / 1000 - self.context.options.deadline_margin_s

    def until(self, wait_s: float) -> float:
        """The wait in seconds, shortened when a deadline comes first."""
        left_s = self.left_s()
        return wait_s if left_s is None else min(wait_s, max(0.05, left_s))

    def again_s(self, number: int, *, cap_s: float) -> float:
        """The wait before trial `number` + 1 of something that the provider cannot do yet."""
        return ceiling_s(number, base_s=self.context.options.poll_interval_s, cap_s=cap_s)

    def now_ms(self) -> int:
        return int(self.context.now().timestamp() * 1000)

    def reached(self, point: str) -> None:
        self.context.reached(f"batch.{point}")

    @property
    def _has_files(self) -> bool:
        return self.context.options.delete_files != "none" and bool(self.batch.number("uploads"))

    async def _notify_operator(self, state: BatchState) -> None:
        url = self.context.options.webhook_url
        if url is None:
            return
        shown = await self.context.batch_client.get(self.batch.id)
        try:
            # Sent before the state changes. After a crash between the two, the webhook id
            # prevents a second one.
            await self.context.webhooks.send(
                url,
                {**shown, "state": state.value, "outstanding": 0},
                event_type="llm.batch.ended",
                webhook_id=f"llm-batch:{self.batch.id}",
            )
        except InvalidArgument as exc:
            log.warning("batch.webhook_refused", batch_id=self.batch.id, error=str(exc))
