"""
Handles a batch that the provider refused as a whole: rejected lines fail, the others are sent again.

If it has no room for the batch now, the batch waits. If the provider names lines, those are rejected and the rest is sent again at once. If it names
none, the requests are split into two halves, each a new batch, until a refused batch has one
request. One original batch may be split into a limited number of batches; beyond that, its
requests are sent as direct calls.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from itertools import pairwise

from cache.logs import get_logger
from worker.llm.answers import NO_ROOM, Answer, whole_batch_error
from worker.llm.batches import Batch
from worker.llm.grouping import most_parts
from worker.llm.moves import Later, Moves
from worker.llm.states import BatchState

log = get_logger(__name__)

# Longest wait for room at the provider.
_ROOM_CAP_S = 600.0
# A batch that found no room this many times may be larger than all the room there is.
_HALVED_EACH = 3
_MOST_REFUSED = 50


async def settle_refusal(
    run: Moves, reason: str, *, code: str = "", bad_lines: Mapping[int, str] | None = None
) -> None:
    """
    Answer or move every open request of a batch that the provider refused.

    `bad_lines`: 1-based line of the file -> reason. `code` is the provider's error code.
    """
    batch, store = run.batch, run.store
    outstanding = await store.outstanding(batch.id)
    if code in NO_ROOM:
        await _wait_for_room(run, reason, outstanding)
        return
    everybody = whole_batch_error(code, reason)
    if everybody is not None:
        await run.items.settle_rest(everybody)
        return
    # Line numbers are valid only while no request has left the batch.
    named = bad_lines if bad_lines and outstanding == batch.number("lines") else {}
    if named:
        outstanding -= await _reject_lines(run, named)
    elif outstanding == 1 and _sent(batch) == 1:
        await run.items.answer_rest(Answer(kind="invalid_request", message=reason))
        return
    if not outstanding:
        return
    if await _may_split(run):
        await _split(run, outstanding, 1 if named else 2)
    else:
        moved = await run.items.detach_all()
        log.info("batch.split", batch_id=batch.id, requests=moved)


async def _wait_for_room(run: Moves, reason: str, outstanding: int) -> None:
    """
    Submit the batch again later; halve one that was refused often, for it may be too large.

    No request is at fault, so none loses a try.
    """
    is_often = (run.batch.number("again") + 1) % _HALVED_EACH == 0
    if is_often and outstanding > 1 and await _may_split(run):
        await _split(run, outstanding, 2)
        return
    await submit_again(run, reason)


async def submit_again(run: Moves, reason: str) -> None:
    """
    Keep the batch for another submission.

    Raises:
        Later: always.
    """
    again = run.batch.number("again") + 1
    if run.batch.state is not BatchState.UPLOADING:
        refused = run.batch.fields.get("refused", "").split()
        known = [*refused, *run.batch.provider_id.split()][-_MOST_REFUSED:]
        await run.move(BatchState.UPLOADED, provider_id="", refused=" ".join(known), again=again)
    await run.store.note(run.batch.id, again=again)
    await run.note_error(reason)
    log.info("batch.no_room", batch_id=run.batch.id, error=reason)
    raise Later(run.again_s(again, cap_s=_ROOM_CAP_S))


def _sent(batch: Batch) -> int:
    """The number of requests sent to the provider; after a crash it can exceed the open ones."""
    return batch.number("lines") or batch.number("sent") or batch.size


async def _reject_lines(run: Moves, named: Mapping[int, str]) -> int:
    """Answer the named lines with an error; returns how many."""
    line = rejected = 0
    async for page in run.store.unanswered(run.batch.id):
        answers = []
        for request in page:
            line += 1
            if line in named:
                answers.append((request.id, Answer(kind="invalid_request", message=named[line])))
        rejected += await run.context.requests.answer_many(answers)
    return rejected


async def _may_split(run: Moves) -> bool:
    family_id = run.batch.fields.get("family")
    first: Batch | None = run.batch if not family_id else await run.store.read(family_id)
    return first is not None and first.number("parts") + 2 <= most_parts(first.size)


async def _split(run: Moves, outstanding: int, parts: int) -> None:
    """Move the open requests into `parts` new batches."""
    size, left = -(-outstanding // parts), outstanding
    new_id, filled = _new_id(), 0
    async for page in run.store.unanswered(run.batch.id):
        for ids in _pieces([request.id for request in page], size - filled, size):
            filled, left = filled + len(ids), left - len(ids)
            full = filled == size or not left
            new_id = await _move(run, new_id, ids, seal=full)
            run.reached("splitting")
            if full:
                new_id, filled = _new_id(), 0
    if filled:  # a request was answered after the count
        await _move(run, new_id, [], seal=True)
    log.info("batch.refused", batch_id=run.batch.id, parts=parts)
    run.reached("split")


def _pieces(ids: Sequence[str], first: int, size: int) -> list[Sequence[str]]:
    """Cut a page where a new batch is full."""
    cuts = [0, *range(min(first, len(ids)), len(ids), size), len(ids)]
    return [ids[a:b] for a, b in pairwise(cuts) if a < b]


async def _move(run: Moves, new_id: str, ids: Sequence[str], *, seal: bool) -> str:
    """Move requests; returns the id of their batch, a new one if the given one is sealed."""
    prepared = run.context.prepared
    while not await run.store.split(run.batch, new_id, ids, seal=seal, job=prepared.batch(new_id)):
        new_id = _new_id()
    return new_id


def _new_id() -> str:
    return uuid.uuid4().hex[:24]
