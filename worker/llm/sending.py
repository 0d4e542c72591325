"""
The steps of a batch up to its submission: seal, upload, submit, look up what was lost.

The call between `submitting` and `submitted` must not be made twice: a run that finds
a batch there makes it `unconfirmed` and looks the submission up at the provider before
anything is sent again.
"""

from __future__ import annotations

from cache.logs import get_logger
from worker.errors import Permanent
from worker.llm.answers import CANCELED
from worker.llm.moves import LOOK_AGAIN_S, READY_S, Later, Moves
from worker.llm.providers import Busy, Unclear, Unsent
from worker.llm.providers.protocol import NotReady
from worker.llm.states import (
    BatchState,
    LookupResult,
    OnAmbiguous,
    UnconfirmedDecision,
    decide_unconfirmed,
)

log = get_logger(__name__)


class SendSteps(Moves):
    """Each step leaves the batch in another state, or raises."""

    async def seal(self) -> None:
        await self.move(BatchState.SEALED)  # the flush that filled it died

    async def prepare(self) -> None:
        if await self._is_over():
            return
        self.reached("sealed")
        if self.provider.uploads:
            await self.move(BatchState.UPLOADING)
        else:
            await self.move(BatchState.UPLOADED, file_id="")

    async def upload(self) -> None:
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
        await self.move(
            BatchState.UPLOADED,
            file_id=file_id,
            lines=lines.count,
            uploads=uploads,
            uploaded_at=self.now_ms(),
        )

    async def submit(self) -> None:
        if await self._is_over():
            return
        lines = await self.lines()
        if not lines.count:
            await self.store.drop_lost(self.batch.id)
            await self._is_over()
            return
        if self.provider.uploads and lines.count != self.batch.number("lines"):
            # While it waited, requests were answered or left: the file would buy them again.
            await self.move(BatchState.UPLOADING)
            return
        # From here on nothing is sent again before a lookup.
        await self.move(BatchState.SUBMITTING, submitting_at=self.now_ms(), sent=lines.count)
        self.reached("submitting")
        try:
            file_id = self.batch.fields.get("file_id", "")
            remote = await self.provider.submit(self.batch.group, lines, file_id=file_id)
        except NotReady as exc:
            await self._wait_for_file(exc)
            return
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
        raise Later(self.context.options.poll_interval_s)

    async def _wait_for_file(self, exc: NotReady) -> None:
        if self.now_ms() - self.batch.number("uploaded_at") > READY_S * 1000:
            raise exc.refusal
        looks = self.batch.number("looks") + 1
        await self.move(BatchState.UPLOADED, looks=looks)
        await self.note_error(str(exc))
        log.info("batch.file_not_ready", batch_id=self.batch.id, error=str(exc))
        raise Later(self.again_s(looks, cap_s=LOOK_AGAIN_S))

    async def find_unconfirmed(self) -> None:
        await self._unconfirmed("an earlier run ended during the submission")

    async def _unconfirmed(self, reason: str) -> None:
        log.warning("batch.unconfirmed", batch_id=self.batch.id, error=reason)
        times = self.batch.number("ambiguous") + 1
        await self.move(BatchState.UNCONFIRMED, ambiguous=times)
        await self.note_error(reason)

    async def reconcile(self) -> None:
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

    async def _is_over(self) -> bool:
        """Before the submission: end the batch if no request of it is still wanted."""
        if self.batch.is_canceled:
            await self.items.answer_rest(CANCELED)
        if await self.store.outstanding(self.batch.id):
            return False
        await self.end(BatchState.DONE)
        return True
