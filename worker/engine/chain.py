"""
Builds what follows a successful job: its chained job, or its item of a gathered result.

A job's options (`o` in its body) hold `then`: {f, a, k, id, q, delay, xs, o} and `g`: {id, i}.
The script that ends the job writes both, so neither can be lost or doubled.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from cache.encoding import codec
from cache.errors import NotEncodable
from worker.engine.results import MOST_RESULT_BYTES


def following(
    job_id: str, options: Mapping[str, Any], result: Any, *, now_ms: int
) -> dict[str, Any]:
    """
    Return the extra details of the job's end: {jobs} and {gather}.

    The next job's id derives from this one's, so a repeated end creates no second job.

    Raises:
        cache.errors.NotEncodable: the result cannot be passed to the next job, or is over 64 MiB.
    """
    details: dict[str, Any] = {}
    then = options.get("then")
    if then is not None:
        more = dict(then["o"])
        if then["xs"] is not None:
            more["x"] = now_ms + then["xs"]
        if "trace" in options:
            more["trace"] = options["trace"]
        body = {
            "t": None,
            "f": then["f"],
            "a": [result, *then["a"]],
            "k": then["k"],
            "et": now_ms,
            "o": more,
        }
        next_id = then.get("id") or f"{job_id}:then"
        details["jobs"] = [
            {
                "id": next_id,
                "queue": then["q"],
                "delay": then["delay"],
                "body": _encode(body),
            }
        ]
    part = options.get("g")
    if part is not None:
        details["gather"] = {
            "id": part["id"],
            "index": part["i"],
            "value": _encode(result),
        }
    return details


def _encode(value: Any) -> msgspec.Raw:
    data = codec.encode_exact(value)
    if len(data) > MOST_RESULT_BYTES:
        raise NotEncodable(
            f"the next job would take {len(data)} bytes, over the limit of {MOST_RESULT_BYTES}"
        )
    return codec.lua_text(data)
