"""
One run of a batch: from the state in which it is, step by step, as far as it goes.

Every step does its work and then moves the batch, compare-and-set; a run that
was overtaken moves nothing. Between `submitting` and `submitted` lies the one
call that must not be made twice: whoever finds a batch there makes it
`suspect`, and looks for the submission before anything is sent again.
docs/states.md draws it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import ClassVar

import structlog

from worker.deps import Deps
from worker.effects.batches import Batch
from worker.effects.providers import Busy, Lines, RemoteBatch, Unclear, Unsent
from worker.effects.providers.protocol import Absent
from worker.errors import InvalidArgument, Permanent
from worker.jobs.batch_items import Items, NotOurs
from worker.policy.answers import CANCELED, Answer
from worker.policy.batch_states import BatchState, OnAmbiguous, Verdict, judge_suspect

log = structlog.get_logger("worker.batch")

# A provider may not find a batch at once after it was created.
_ABSENT_S = 600.0
# Looks for a lost submission, and at results that lacked a line.
_LOOK_AGAIN_S = 10.0
# Batches whose provider ids a look for a lost submission leaves out.
_KNOWN_BATCHES = 10_000


class Overtaken(Exception):
    """A later run has begun; this one does nothing more."""


class Later(Exception):
    """Nothing to do for `wait_s` seconds."""

    def __init__(self, wait_s: float) -> None:
        super().__init__(wait_s)
        self.wait_s = wait_s


class BatchRun:
    """One run; `batch` is as this run has moved it."""

    def __init__(self, deps: Deps, batch: Batch) -> None:
        self.deps = deps
        self.batch = batch
        self.provider = deps.providers[batch.group.provider]
        self.store = deps.queue.batches
        self.items = Items(deps, batch)

    async def advance(self) -> str:
        """
        Take steps until the batch has ended; returns the end state.

        Raises:
            Later: nothing can be done now. Overtaken: another run has the batch.
            BatchesUnsupported, Permanent, Transient: from the provider.
        """
        while not self.batch.state.is_end:
            await self._steps[self.batch.state](self)
        return self.batch.state.value

    async def go_singly(self) -> str:
        """The endpoint has no batches: every request goes by itself."""
        moved = await self.items.detach_all()
        log.info("batch.split", batch_id=self.batch.id, requests=moved)
        return await self._end(BatchState.DONE)

    async def fail(self, reason: str) -> str:
        """The provider refused the batch whole: every open request gets that error."""
        await self.items.answer_rest(Answer(kind="batch_refused", message=reason))
        return await self._end(BatchState.FAILED, error=reason)

    # -- steps: each leaves the batch in another state, or raises ---------------

    async def _seal(self) -> None:
        await self._move(BatchState.SEALED)  # its flush died half way

    async def _prepare(self) -> None:
        if await self._is_over():
            return
        self._reached("sealed")
        if self.provider.uploads:
            await self._move(BatchState.UPLOADING)
        else:
            await self._move(BatchState.UPLOADED, file_id="")

    async def _upload(self) -> None:
        lines = await self._lines()
        if not lines.count:
            await self._is_over()
            return
        self._reached("uploading")
        try:
            file_id = await self.provider.upload(lines)
        except (Unsent, Unclear):
            if lines.changed:
                return  # once more, without the request that was answered
            raise
        self._reached("uploaded")
        await self._move(BatchState.UPLOADED, file_id=file_id, lines=lines.count)

    async def _submit(self) -> None:
        if await self._is_over():
            return
        lines = await self._lines()
        # From here on nothing is sent again before it was looked for.
        await self._move(BatchState.SUBMITTING, submitting_at=self._now_ms(), sent=lines.count)
        self._reached("submitting")
        try:
            file_id = self.batch.fields.get("file_id", "")
            remote = await self.provider.submit(self.batch.group, lines, file_id=file_id)
        except (Unsent, Busy):
            await self._move(BatchState.UPLOADED)
            raise
        except Unclear as exc:
            if lines.changed:  # broken off by ourselves, in the middle of the body
                await self._move(BatchState.UPLOADED)
                return
            await self._suspect(str(exc))
            return
        self._reached("posted")
        await self._move(BatchState.SUBMITTED, provider_id=remote.id)
        self._reached("submitted")
        log.info(
            "batch.submitted",
            batch_id=self.batch.id,
            provider_id=remote.id,
            requests=self.batch.size,
        )
        raise Later(self._until_next_look())

    async def _find_suspect(self) -> None:
        await self._suspect("an earlier run ended while it submitted")

    async def _suspect(self, reason: str) -> None:
        log.warning("batch.suspected", batch_id=self.batch.id, error=reason)
        times = self.batch.number("ambiguous") + 1
        await self._move(BatchState.SUSPECT, ambiguous=times, error="")

    async def _reconcile(self) -> None:
        batch, config = self.batch, self.deps.llm
        self._reached("suspect")
        sighting = await self.provider.find(
            batch.id,
            since_ms=batch.submitting_ms,
            count=batch.number("sent") or batch.size,
            taken=await self._taken(),
        )
        verdict = judge_suspect(
            sighting,
            on_ambiguous=config.on_ambiguous,
            age_s=(self._now_ms() - batch.submitting_ms) / 1000,
            wait_s=config.suspect_wait_s,
        )
        log.info("batch.reconciled", batch_id=batch.id, verdict=verdict.value)
        if verdict is Verdict.ADOPT:
            id_ = sighting.provider_id
            await self._move(BatchState.SUBMITTED, provider_id=id_, adopted=1)
            self._reached("submitted")
        elif verdict is Verdict.SUBMIT:
            await self._move(BatchState.UPLOADED)
        elif verdict is Verdict.FAIL:
            raise Permanent(
                "it cannot be told whether the batch was submitted "
                f"(LETTA_LLM_ON_AMBIGUOUS={OnAmbiguous.FAIL})"
            )
        else:
            raise Later(min(_LOOK_AGAIN_S, config.suspect_wait_s / 4))

    async def _poll(self) -> None:
        await self.items.rescue()
        try:
            remote = await self.provider.read(self.batch.provider_id)
        except Absent as exc:
            if self._now_ms() - self.batch.submitting_ms > _ABSENT_S * 1000:
                raise Permanent(f"the provider has no such batch any more: {exc}") from None
            raise
        if remote.ended:
            await self._move(BatchState.FETCHING)
            return
        if self.batch.state is BatchState.SUBMITTED and await self._is_unwanted():
            with contextlib.suppress(Absent):  # it knows no cancelling: its end is waited for
                await self.provider.cancel(self.batch.provider_id)
            await self._move(BatchState.CANCELING)
            log.info("batch.canceled", batch_id=self.batch.id)
        raise Later(self._until_next_look())

    async def _is_unwanted(self) -> bool:
        return self.batch.is_canceled or not await self.store.outstanding(self.batch.id)

    async def _fetch(self) -> None:
        batch = self.batch
        remote = await self.provider.read(batch.provider_id)
        answered = 0
        try:
            if not remote.failed:
                answered = await self.items.take_results(self.provider, remote)
        except NotOurs:
            refused = " ".join([batch.fields.get("refused", ""), batch.provider_id]).strip()
            await self._move(BatchState.SUSPECT, provider_id="", adopted="", refused=refused)
            return
        self._reached("fetched")
        await self._settle_rest(remote)
        self._reached("answered")
        log.info("batch.answered", batch_id=batch.id, status=remote.status, items=answered)
        state = BatchState.FAILED if remote.failed else BatchState.DONE
        await self._end(state, error=remote.error)

    async def _settle_rest(self, remote: RemoteBatch) -> None:
        """What has no line: refused, cancelled, or missing; that is believed at the second look."""
        batch = self.batch
        if not await self.store.outstanding(batch.id):
            return
        if remote.failed:
            await self.items.refuse(remote)
        elif batch.is_canceled:
            await self.items.answer_rest(CANCELED)
        elif not batch.fields.get("looked_twice"):
            await self.store.note(batch.id, looked_twice=1)
            raise Later(min(_LOOK_AGAIN_S, self.deps.llm.poll_interval_s))
        else:
            await self.items.miss_rest()

    _steps: ClassVar[dict[BatchState, Callable[[BatchRun], Awaitable[None]]]] = {
        BatchState.OPEN: _seal,
        BatchState.SEALED: _prepare,
        BatchState.UPLOADING: _upload,
        BatchState.UPLOADED: _submit,
        BatchState.SUBMITTING: _find_suspect,
        BatchState.SUSPECT: _reconcile,
        BatchState.SUBMITTED: _poll,
        BatchState.CANCELING: _poll,
        BatchState.FETCHING: _fetch,
    }

    # -- inside ----------------------------------------------------------------

    async def _is_over(self) -> bool:
        """Before anything was submitted: whether nobody waits, or wants it, any more."""
        if self.batch.is_canceled:
            await self.items.answer_rest(CANCELED)
        else:
            await self.items.rescue()
        if await self.store.outstanding(self.batch.id):
            return False
        await self._end(BatchState.DONE)
        return True

    async def _lines(self) -> Lines:
        batch = self.batch
        count, size = await self.store.sizes(batch.id)
        return Lines(
            batch.id,
            batch.group.endpoint,
            lambda: self.store.unanswered(batch.id),
            count=count,
            size=size,
        )

    async def _taken(self) -> set[str]:
        """Provider ids that are other batches', or were found not to be this one's."""
        others = await self.store.listed(_KNOWN_BATCHES)
        taken = {batch.provider_id for batch in others if batch.id != self.batch.id}
        return taken | set(self.batch.fields.get("refused", "").split())

    async def _move(
        self, to: BatchState, *, only_when_answered: bool = False, **fields: str | int
    ) -> bool:
        moved = await self.store.move(
            self.batch, to, only_when_answered=only_when_answered, **fields
        )
        if moved == 0:
            raise Overtaken
        if moved == 1:
            texts = {name: str(value) for name, value in fields.items()}
            self.batch = self.batch.moved(to, texts)
            self.items.batch = self.batch
        return moved == 1

    async def _end(self, state: BatchState, *, error: str = "") -> str:
        await self._tell(state)
        if not await self._move(state, only_when_answered=True, error=error):
            raise Later(_LOOK_AGAIN_S)
        self._reached("ended")
        return state.value

    async def _tell(self, state: BatchState) -> None:
        url = self.deps.llm.webhook_url
        if url is None:
            return
        shown = await self.deps.queue.llm_batch(self.batch.id)
        try:
            # Before the state: a crash between the two sends it once, by its id.
            await self.deps.queue.send_webhook(
                url,
                {**shown, "state": state.value, "outstanding": 0},
                event_type="llm.batch.ended",
                webhook_id=f"llm-batch:{self.batch.id}",
            )
        except InvalidArgument as exc:
            log.warning("batch.webhook_refused", batch_id=self.batch.id, error=str(exc))

    def _until_next_look(self) -> float:
        config, deadline_ms = self.deps.llm, self.batch.deadline_ms
        if deadline_ms is None:
            return config.poll_interval_s
        left_s = (deadline_ms - self._now_ms()) / 1000 - config.deadline_margin_s
        return min(config.poll_interval_s, max(0.05, left_s))

    def _now_ms(self) -> int:
        return int(self.deps.now().timestamp() * 1000)

    def _reached(self, point: str) -> None:
        self.deps.reached(f"batch.{point}")
