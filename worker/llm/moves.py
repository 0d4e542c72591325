"""
What every step of a batch's run stands on: moves by compare-and-set, the end, and who is told of it.
"""

from __future__ import annotations

import structlog

from worker.errors import InvalidArgument
from worker.llm.batches import Batch
from worker.llm.context import LLMContext
from worker.llm.items import Items
from worker.llm.providers import Lines
from worker.llm.states import BatchState

log = structlog.get_logger(__name__)

# Looks for a lost submission, and at results that lacked a line.
LOOK_AGAIN_S = 10.0
# Batches whose provider ids a look for a lost submission leaves out.
_KNOWN_BATCHES = 10_000


class Overtaken(Exception):
    """A later run has begun; this one does nothing more."""


class Later(Exception):
    """Nothing to do for `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s


class Moves:
    """One run's hold on a batch; `batch` is as this run has moved it."""

    def __init__(self, context: LLMContext, batch: Batch) -> None:
        self.context = context
        self.batch = batch
        self.provider = context.providers[batch.group.provider]
        self.store = context.batches
        self.items = Items(context, batch)

    async def move(self, to: BatchState, **fields: str | int) -> None:
        """
        Raises:
            Overtaken: another run has the batch. Later: it cannot end, for requests of it are open.
        """
        # Files are deleted only when all that was in them is stored.
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
        """As `move`, and the operator's webhook is told."""
        await self._tell(state)
        await self.move(state, error=error)
        self.reached("ended")
        return state.value

    async def lines(self) -> Lines:
        """What the batch sends: its requests that have no answer yet."""
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
        Provider ids that are not this batch's, and those that another holds on a guess.

        The first are other batches' for certain, or were found to be; the second may
        turn out to be this one's when their results come.
        """
        known = set(self.batch.fields.get("refused", "").split())
        guessed: set[str] = set()
        for other in await self.store.listed(_KNOWN_BATCHES):
            if other.id != self.batch.id and other.provider_id:
                is_open = other.is_guess and not other.state.is_end
                (guessed if is_open else known).add(other.provider_id)
        return known, guessed - known

    def until_next_look(self) -> float:
        """Seconds until the provider is asked again: less when a deadline comes near before."""
        config, deadline_ms = self.context.options, self.batch.deadline_ms
        if deadline_ms is None:
            return config.poll_interval_s
        left_s = (deadline_ms - self.now_ms()) / 1000 - config.deadline_margin_s
        return min(config.poll_interval_s, max(0.05, left_s))

    def now_ms(self) -> int:
        return int(self.context.now().timestamp() * 1000)

    def reached(self, point: str) -> None:
        self.context.reached(f"batch.{point}")

    @property
    def _has_files(self) -> bool:
        return self.context.options.delete_files != "none" and bool(self.batch.number("uploads"))

    async def _tell(self, state: BatchState) -> None:
        url = self.context.options.webhook_url
        if url is None:
            return
        shown = await self.context.batch_client.get(self.batch.id)
        try:
            # Before the state: a crash between the two sends it once, by its id.
            await self.context.webhooks.send(
                url,
                {**shown, "state": state.value, "outstanding": 0},
                event_type="llm.batch.ended",
                webhook_id=f"llm-batch:{self.batch.id}",
            )
        except InvalidArgument as exc:
            log.warning("batch.webhook_refused", batch_id=self.batch.id, error=str(exc))
