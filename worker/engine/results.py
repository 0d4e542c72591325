"""
Encodes results as stock arq stores them. It cannot fail: what a serializer refuses is replaced.

A serializer may not support exceptions, may refuse a job's value, and may raise anything;
a job may have put something into its arguments that the serializer refuses. None of these
prevents the end of the job.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from arq.worker import JobExecutionFailed

from cache.encoding import codec
from worker.engine.failures import describe, portable

# Leaves room below the server's protocol limits.
MOST_RESULT_BYTES = 64 * 1024 * 1024

Serializer = Callable[[dict[str, Any]], Any]


def encode_result(serializer: Serializer, fields: dict[str, Any]) -> tuple[bytes | None, str]:
    """
    Encode a result's fields. Return the data, and the problem with the job's value, or "".

    A value or exception that cannot be encoded is replaced by text. The data is None if the
    serializer encodes nothing at all.
    """
    value, failed, is_ours = fields["r"], not fields["s"], serializer is codec.encode
    if failed and is_ours:
        fields = {**fields, "r": portable(value)}
    data, problem = _try(serializer, fields)
    if data is not None:
        return data, ""
    bare = {**fields, "a": [], "k": {}}
    data, _ = _try(serializer, bare)
    if data is not None:
        return data, ""
    # The job's own exception tells more than the encoding error.
    what = describe(value) if failed else f"result: {problem}"
    text = f"unable to serialize {what}"
    # Text, as arq stores it: the serializer may know no exceptions.
    replaced = JobExecutionFailed(text) if is_ours else text
    data, _ = _try(serializer, {**bare, "s": False, "r": replaced})
    return data, problem


def _try(serializer: Serializer, fields: dict[str, Any]) -> tuple[bytes | None, str]:
    """Return the data, or None and the problem."""
    try:
        data = serializer(fields)
        if type(data) is not bytes:
            data = data.encode() if isinstance(data, str) else bytes(memoryview(data))
    except BaseException as exc:  # noqa: BLE001  (a serializer, and what it calls, may raise anything)
        return None, describe(exc)
    if len(data) > MOST_RESULT_BYTES:
        return None, f"the result takes {len(data)} bytes, over the limit of {MOST_RESULT_BYTES}"
    return data, ""
