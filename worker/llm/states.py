"""
The states of a batch, and what is decided between them. docs/states.md draws it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class BatchState(StrEnum):
    """Where a batch is; `unconfirmed` is the one in which nothing may be sent."""

    OPEN = "open"
    SEALED = "sealed"
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    SUBMITTING = "submitting"
    UNCONFIRMED = "unconfirmed"
    SUBMITTED = "submitted"
    CANCELING = "canceling"
    FETCHING = "fetching"
    DONE = "done"
    FAILED = "failed"

    @property
    def is_end(self) -> bool:
        return self in {BatchState.DONE, BatchState.FAILED}


class OnAmbiguous(StrEnum):
    """What the operator wants when it cannot be told whether a batch was submitted."""

    ADOPT = "adopt"
    RESUBMIT = "resubmit"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class LookupResult:
    """
    What a look for a submission gave: its id, or whether the look was complete.

    A complete look that found nothing says that nothing was there when it was made.
    One that is not `certain` was told by its time and size alone: its results say whose it is.
    """

    provider_id: str = ""
    complete: bool = True
    certain: bool = True


class UnconfirmedDecision(StrEnum):
    """What becomes of a suspect batch."""

    ADOPT = "adopt"
    WAIT = "wait"
    SUBMIT = "submit"
    FAIL = "fail"


def decide_unconfirmed(
    lookup: LookupResult, *, on_ambiguous: OnAmbiguous, age_s: float, wait_s: float
) -> UnconfirmedDecision:
    """
    `age_s` since the submission began, `wait_s` after which what is not listed was not taken.

    Nothing is sent again unless a complete look after that time found nothing,
    or the operator prefers paying twice to waiting.
    """
    if lookup.provider_id:
        return UnconfirmedDecision.ADOPT
    if age_s < wait_s:
        return UnconfirmedDecision.WAIT
    if on_ambiguous is OnAmbiguous.FAIL:
        return UnconfirmedDecision.FAIL
    if lookup.complete or on_ambiguous is OnAmbiguous.RESUBMIT:
        return UnconfirmedDecision.SUBMIT
    return UnconfirmedDecision.WAIT
