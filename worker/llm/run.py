"""
Runs a batch step by step, from its current state as far as it can go now.

Each step does its work and then changes the state by compare-and-set, so a run
that was overtaken changes nothing. A deadline counts in every state: requests whose
deadline is near leave the batch before each step, and a step that waits for the
provider is interrupted. docs/states.md shows the states.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import ClassVar

from cache.logs import get_logger
from worker.errors import Permanent
from worker.llm.answers import Answer
from worker.llm.moves import LOOK_AGAIN_S, Later
from worker.llm.providers.protocol import Denied, Refused
from worker.llm.reading import ReadSteps
from worker.llm.refusals import settle_refusal
from worker.llm.sending import SendSteps
from worker.llm.states import BatchState

log = get_logger(__name__)

# States in which a refusal concerns the requests that were sent.
_SENDING = {BatchState.UPLOADING, BatchState.SUBMITTING}
# An interrupted submission would have to be looked up; its own timeout is short.
_UNINTERRUPTED = {BatchState.UPLOADED, BatchState.SUBMITTING}
# An interrupted step may have changed what this run knows, so another run continues.
_AT_ONCE_S = 0.05


class BatchRun(SendSteps, ReadSteps):
    """One run of a batch."""

    _steps: ClassVar[dict[BatchState, Callable[[BatchRun], Awaitable[None]]]] = {
        BatchState.OPEN: SendSteps.seal,
        BatchState.SEALED: SendSteps.prepare,
        BatchState.UPLOADING: SendSteps.upload,
        BatchState.UPLOADED: SendSteps.submit,
        BatchState.SUBMITTING: SendSteps.find_unconfirmed,
        BatchState.UNCONFIRMED: SendSteps.reconcile,
        BatchState.SUBMITTED: ReadSteps.poll,
        BatchState.CANCELING: ReadSteps.poll,
        BatchState.FETCHING: ReadSteps.fetch,
    }

    async def advance(self) -> str:
        """
        Take steps until the batch has ended; returns the end state.

        Raises:
            Later: nothing can be done now.
            Overtaken: another run owns the batch.
            BatchesUnsupported, Permanent, Transient: from the provider.
        """
        while not self.batch.state.is_end:
            await self.rescue()
            await self._step()
        return self.batch.state.value

    async def _step(self) -> None:
        step = self._steps[self.batch.state]
        left_s = self.left_s()
        if left_s is None or self.batch.state in _UNINTERRUPTED:
            await step(self)
            return
        try:
            async with asyncio.timeout(max(0.0, left_s)) as due:
                await step(self)
        except TimeoutError:
            if due.expired():
                raise Later(_AT_ONCE_S) from None
            raise

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
            await self.note_error(str(exc))
            raise Later(max(LOOK_AGAIN_S, self.context.options.poll_interval_s))
        if isinstance(exc, Refused) and self.batch.state in _SENDING:
            await settle_refusal(self, str(exc), code=exc.code)
        else:
            await self.items.answer_rest(Answer(kind="batch_refused", message=str(exc)))
        return await self.end(BatchState.FAILED, error=str(exc))
