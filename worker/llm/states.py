"""
Defines the states of a batch and decides what happens to an unconfirmed one (docs/states.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class BatchState(StrEnum):
    """The state of a batch; in `unconfirmed` nothing may be sent."""

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
    """The operator's choice for a batch that may or may not have been submitted."""

    ADOPT = "adopt"
    RESUBMIT = "resubmit"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class LookupResult:
    """
    The result of a lookup for a submission.

    `complete`: the whole list was read, so an empty `provider_id` means that the provider had
    no such batch. Not `certain`: only time and size match, and the results will show whose it is.
    """

    provider_id: str = ""
    complete: bool = True
    certain: bool = True


class UnconfirmedDecision(StrEnum):
    """What happens to an unconfirmed batch."""

    ADOPT = "adopt"
    WAIT = "wait"
    SUBMIT = "submit"
    FAIL = "fail"


def decide_unconfirmed(
    lookup: LookupResult, *, on_ambiguous: OnAmbiguous, age_s: float, wait_s: float
) -> UnconfirmedDecision:
    """
    Decide what happens to an unconfirmed batch.

    `age_s` is the time since the submission began. After `wait_s`, a batch that the provider
    does not list was not accepted. Nothing is sent again unless a complete lookup after that
    time found nothing, or the operator prefers paying twice to waiting.
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
