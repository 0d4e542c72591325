"""
The steps of a batch after its submission: poll the provider, read the results, settle the rest.
"""

from __future__ import annotations

import contextlib

from cache.logs import get_logger
from worker.errors import Permanent, Transient
from worker.llm.answers import CANCELED, Answer
from worker.llm.items import NotOurs
from worker.llm.moves import LOOK_AGAIN_S, READY_S, Later, Moves
from worker.llm.providers import RemoteBatch
from worker.llm.providers.protocol import Absent
from worker.llm.providers.statuses import is_file_unready, is_known
from worker.llm.refusals import settle_refusal, submit_again
from worker.llm.states import BatchState

log = get_logger(__name__)

# A new batch may be missing at the provider for this long.
_ABSENT_S = 600.0
# Results that the provider has not found for this long are lost.
_GONE_S = 3600.0


class ReadSteps(Moves):
    """Each step leaves the batch in another state, or raises."""

    async def poll(self) -> None:
        try:
            remote = await self.provider.read(self.batch.provider_id)
        except Absent as exc:
            if self.now_ms() - self.batch.submitting_ms > _ABSENT_S * 1000:
                raise Permanent(f"the provider no longer has the batch: {exc}") from None
            raise
        if remote.ended:
            await self.move(BatchState.FETCHING, status=remote.status, fetching_at=self.now_ms())
            return
        await self._note_status(remote.status)
        if self.batch.state is BatchState.SUBMITTED and await self._is_unwanted():
            with contextlib.suppress(Absent):  # cannot be canceled: wait for its end instead
                await self.provider.cancel(self.batch.provider_id)
            await self.move(BatchState.CANCELING)
            log.info("batch.canceled", batch_id=self.batch.id)
        raise Later(self.context.options.poll_interval_s)

    async def _note_status(self, status: str) -> None:
        fields = self.batch.fields
        if status == fields.get("status") and not fields.get("error"):
            return
        await self.store.note(self.batch.id, status=status, error="")
        if not is_known(status):
            log.warning("batch.status_unknown", batch_id=self.batch.id, status=status)

    async def _is_unwanted(self) -> bool:
        if self.batch.is_guess:
            return False  # it may be another batch's
        return self.batch.is_canceled or not await self.store.outstanding(self.batch.id)

    async def fetch(self) -> None:
        batch = self.batch
        try:
            remote = await self.provider.read(batch.provider_id)
            await self.store.note(batch.id, result_files=" ".join(remote.files))
            # Even a batch that was refused as a whole may have an error file.
            answered = await self.items.take_results(self.provider, remote)
        except NotOurs:
            refused = " ".join([batch.fields.get("refused", ""), batch.provider_id]).strip()
            nothing = {"provider_id": "", "adopted": "", "guess": ""}
            await self.move(BatchState.UNCONFIRMED, refused=refused, **nothing)
            return
        except Transient as exc:
            await self._unread(exc)
            return
        self.reached("fetched")
        await self._settle_rest(remote, answered)
        self.reached("answered")
        log.info("batch.answered", batch_id=batch.id, status=remote.status, items=answered)
        state = BatchState.FAILED if remote.failed else BatchState.DONE
        await self.end(state, error=remote.error)

    async def _unread(self, exc: Transient) -> None:
        """End the batch if nobody waits for its results, or they are gone; otherwise raise."""
        if await self.store.outstanding(self.batch.id):
            if not isinstance(exc, Absent) or self._fetching_s() < _GONE_S:
                raise exc
            message = f"the provider no longer has the results: {exc}"
            await self.items.answer_rest(Answer(kind="results_gone", message=message))
        await self.end(BatchState.FAILED, error=str(exc))

    def _fetching_s(self) -> float:
        now_ms = self.now_ms()
        return (now_ms - (self.batch.number("fetching_at") or now_ms)) / 1000

    async def _settle_rest(self, remote: RemoteBatch, answered: int) -> None:
        """
        Answer requests that have no result line: refused, canceled or missing.

        The provider's files may appear late: they are read again while it counts more lines than
        they hold, and in any case a second time.
        """
        batch = self.batch
        if not await self.store.outstanding(batch.id):
            return
        is_new = self._fetching_s() < READY_S
        if answered < remote.results and is_new:
            await self.note_error(
                f"{answered} of the provider's {remote.results} results are there"
            )
            raise Later(min(LOOK_AGAIN_S, self.context.options.poll_interval_s))
        if remote.failed and is_new and is_file_unready(None, f"{remote.code} {remote.error}"):
            await submit_again(self, remote.error)
        elif remote.failed:
            await settle_refusal(self, remote.error, code=remote.code, bad_lines=remote.bad_lines)
        elif batch.is_canceled and not self.items.unnamed:
            await self.items.answer_rest(CANCELED)
        elif not batch.fields.get("looked_twice"):
            await self.store.note(batch.id, looked_twice=1)
            raise Later(min(LOOK_AGAIN_S, self.context.options.poll_interval_s))
        else:
            await self.items.miss_rest()
