"""
Runs a batch step by step, from its current state as far as it can go now.

Each step does its work and then changes the state by compare-and-set, so a run
that was overtaken changes nothing. The call between `submitting` and `submitted`
must not be made twice: a run that finds a batch there makes it `unconfirmed` and
looks the submission up at the provider before anything is sent again.
docs/states.md shows the states.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import ClassVar

from cache.logs import get_logger
from worker.errors import Permanent
from worker.llm.answers import CANCELED, Answer
from worker.llm.items import NotOurs
from worker.llm.moves import LOOK_AGAIN_S, Later, Moves
from worker.llm.providers import Busy, RemoteBatch, Unclear, Unsent
from worker.llm.providers.protocol import Absent, Denied, Refused
from worker.llm.refusals import settle_refusal
from worker.llm.states import (
    BatchState,
    LookupResult,
    OnAmbiguous,
    UnconfirmedDecision,
    decide_unconfirmed,
)

log = get_logger(__name__)

# A new batch may be missing at the provider for this long.
_ABSENT_S = 600.0
# States in which a refusal concerns the requests that were sent.
_SENDING = {BatchState.UPLOADING, BatchState.SUBMITTING}


class BatchRun(Moves):
    """One run of a batch."""

    async def advance(self) -> str:
        """
        Take steps until the batch has ended; returns the end state.

        Raises:
            Later: nothing can be done now.
            Overtaken: another run owns the batch.
            BatchesUnsupported, Permanent, Transient: from the provider.
        """
        while not self.batch.state.is_end:
            await self._steps[self.batch.state](self)
        return self.batch.state.value

    async def send_directly(self) -> str:
        """Send every request as a direct call, because the endpoint has no batches."""
        moved = await self.items.detach_all()
        log.info("batch.split", batch_id=self.batch.id, requests=moved)
        return await self.end(BatchState.DONE)

    async def fail(self, exc: Permanent) -> str:
        """
        End the batch after a permanent error.

        If the provider refused the requests themselves, the rejected ones fail and the others are
        sent again; otherwise every open request gets the error.
        """
        if isinstance(exc, Denied) and self.batch.provider_id:
            # The batch is paid for, and the operator can fix the key.
            log.error("batch.denied", batch_id=self.batch.id, error=str(exc))
            raise Later(max(LOOK_AGAIN_S, self.context.options.poll_interval_s))
        if isinstance(exc, Refused) and self.batch.state in _SENDING:
            await settle_refusal(self, str(exc), code=exc.code)
        else:
            await self.items.answer_rest(Answer(kind="batch_refused", message=str(exc)))
        return await self.end(BatchState.FAILED, error=str(exc))

    # -- steps: each leaves the batch in another state, or raises ---------------

    async def _seal(self) -> None:
        await self.move(BatchState.SEALED)  # the flush that filled it died

    async def _prepare(self) -> None:
        if await self._is_over():
            return
        self.reached("sealed")
        if self.provider.uploads:
            await self.move(BatchState.UPLOADING)
        else:
            await self.move(BatchState.UPLOADED, file_id="")

    async def _upload(self) -> None:
        lines = await self.lines()
        if not lines.count:
            await self.store.drop_lost(self.batch.id)
            await self._is_over()
            return
        # Counted first: an upload whose reply is lost leaves a file with an unknown id.
        uploads = self.batch.number("uploads") + 1
        await self.store.note(self.batch.id, uploads=uploads)
        self.reached("uploading")
        try:
            file_id = await self.provider.upload(lines)
        except (Unsent, Unclear):
            if lines.changed:
                return  # upload again, without the request that was answered meanwhile
            raise
        self.reached("uploaded")
        await self.move(BatchState.UPLOADED, file_id=file_id, lines=lines.count, uploads=uploads)

    async def _submit(self) -> None:
        if await self._is_over():
            return
        lines = await self.lines()
        # From here on nothing is sent again before a lookup.
        if not lines.count:
            await self.store.drop_lost(self.batch.id)
            await self._is_over()
            return
        await self.move(BatchState.SUBMITTING, submitting_at=self.now_ms(), sent=lines.count)
        self.reached("submitting")
        try:
            file_id = self.batch.fields.get("file_id", "")
            remote = await self.provider.submit(self.batch.group, lines, file_id=file_id)
        except (Unsent, Busy):
            await self.move(BatchState.UPLOADED)
            raise
        except Unclear as exc:
            if lines.changed:  # our side aborted the request in the middle of its body
                await self.move(BatchState.UPLOADED)
                return
            await self._unconfirmed(str(exc))
            return
        self.reached("posted")
        await self.move(BatchState.SUBMITTED, provider_id=remote.id)
        self.reached("submitted")
        log.info(
            "batch.submitted",
            batch_id=self.batch.id,
            provider_id=remote.id,
            requests=lines.count,
        )
        raise Later(self.until_next_look())

    async def _find_unconfirmed(self) -> None:
        await self._unconfirmed("an earlier run ended during the submission")

    async def _unconfirmed(self, reason: str) -> None:
        log.warning("batch.unconfirmed", batch_id=self.batch.id, error=reason)
        times = self.batch.number("ambiguous") + 1
        await self.move(BatchState.UNCONFIRMED, ambiguous=times, error="")

    async def _reconcile(self) -> None:
        batch, config = self.batch, self.context.options
        self.reached("unconfirmed")
        known, guessed = await self.taken()
        lookup = await self._look(known | guessed)
        decision = decide_unconfirmed(
            lookup,
            on_ambiguous=config.on_ambiguous,
            age_s=(self.now_ms() - batch.submitting_ms) / 1000,
            wait_s=config.unconfirmed_wait_s,
        )
        if (
            decision is UnconfirmedDecision.SUBMIT
            and guessed
            and (await self._look(known)).provider_id
        ):
            # The only match is a guess of another batch; its results will show whose it is.
            decision = UnconfirmedDecision.WAIT
        log.info("batch.reconciled", batch_id=batch.id, decision=decision.value)
        if decision is UnconfirmedDecision.ADOPT:
            guess = "" if lookup.certain else 1
            id_ = lookup.provider_id
            await self.move(BatchState.SUBMITTED, provider_id=id_, adopted=1, guess=guess)
            self.reached("submitted")
        elif decision is UnconfirmedDecision.SUBMIT:
            await self.move(BatchState.UPLOADED)
        elif decision is UnconfirmedDecision.FAIL:
            raise Permanent(
                "it is unknown whether the batch was submitted "
                f"(LETTA_LLM_ON_AMBIGUOUS={OnAmbiguous.FAIL})"
            )
        else:
            raise Later(min(LOOK_AGAIN_S, config.unconfirmed_wait_s / 4))

    async def _look(self, not_ours: set[str]) -> LookupResult:
        batch = self.batch
        return await self.provider.find(
            batch.id,
            since_ms=batch.submitting_ms,
            count=batch.number("sent") or batch.size,
            taken=not_ours,
        )

    async def _poll(self) -> None:
        await self.items.rescue()
        try:
            remote = await self.provider.read(self.batch.provider_id)
        except Absent as exc:
            if self.now_ms() - self.batch.submitting_ms > _ABSENT_S * 1000:
                raise Permanent(f"the provider no longer has the batch: {exc}") from None
            raise
        if remote.ended:
            await self.move(BatchState.FETCHING)
            return
        if self.batch.state is BatchState.SUBMITTED and await self._is_unwanted():
            with contextlib.suppress(Absent):  # cannot be canceled: wait for its end instead
                await self.provider.cancel(self.batch.provider_id)
            await self.move(BatchState.CANCELING)
            log.info("batch.canceled", batch_id=self.batch.id)
        raise Later(self.until_next_look())

    async def _is_unwanted(self) -> bool:
        if self.batch.is_guess:
            return False  # it may be another batch's
        return self.batch.is_canceled or not await self.store.outstanding(self.batch.id)

    async def _fetch(self) -> None:
        batch = self.batch
        remote = await self.provider.read(batch.provider_id)
        await self.store.note(batch.id, result_files=" ".join(remote.files))
        try:
            # Even a batch that was refused as a whole may have an error file.
            answered = await self.items.take_results(self.provider, remote)
        except NotOurs:
            refused = " ".join([batch.fields.get("refused", ""), batch.provider_id]).strip()
            nothing = {"provider_id": "", "adopted": "", "guess": ""}
            await self.move(BatchState.UNCONFIRMED, refused=refused, **nothing)
            return
        self.reached("fetched")
        await self._settle_rest(remote)
        self.reached("answered")
        log.info("batch.answered", batch_id=batch.id, status=remote.status, items=answered)
        state = BatchState.FAILED if remote.failed else BatchState.DONE
        await self.end(state, error=remote.error)

    async def _settle_rest(self, remote: RemoteBatch) -> None:
        """
        Answer requests that have no result line: refused, canceled or missing.

        Missing lines are read a second time, because the provider's files may appear late.
        """
        batch = self.batch
        if not await self.store.outstanding(batch.id):
            return
        if remote.failed:
            await settle_refusal(self, remote.error, code=remote.code, bad_lines=remote.bad_lines)
        elif batch.is_canceled:
            await self.items.answer_rest(CANCELED)
        elif not batch.fields.get("looked_twice"):
            await self.store.note(batch.id, looked_twice=1)
            raise Later(min(LOOK_AGAIN_S, self.context.options.poll_interval_s))
        else:
            await self.items.miss_rest()

    _steps: ClassVar[dict[BatchState, Callable[[BatchRun], Awaitable[None]]]] = {
        BatchState.OPEN: _seal,
        BatchState.SEALED: _prepare,
        BatchState.UPLOADING: _upload,
        BatchState.UPLOADED: _submit,
        BatchState.SUBMITTING: _find_unconfirmed,
        BatchState.UNCONFIRMED: _reconcile,
        BatchState.SUBMITTED: _poll,
        BatchState.CANCELING: _poll,
        BatchState.FETCHING: _fetch,
    }

    # -- inside ----------------------------------------------------------------

    async def _is_over(self) -> bool:
        """Before the submission: end the batch if no request of it is still wanted."""
        if self.batch.is_canceled:
            await self.items.answer_rest(CANCELED)
        else:
            await self.items.rescue()
        if await self.store.outstanding(self.batch.id):
            return False
        await self.end(BatchState.DONE)
        return True
