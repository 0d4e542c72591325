"""
Limits the rate of direct calls over all workers: one script admits a call, one releases it.

The slots of a worker that dies become free when their leases end. A provider's
`Retry-After` pauses all calls. A 429 or 529 lowers the limit on calls in flight;
successes raise it again.
"""

from __future__ import annotations

from typing import Any, Literal

from cache.connection.scripts import load
from worker.keys import LLM_RATE_TTL_S, QueueKeys
from worker.llm.rate_policy import RateLimits, call_pace

_ADMIT = load(__package__, "admit_llm", "..queue")
_RELEASE = load(__package__, "release_llm", "..queue")

# How far ahead a start time may be reserved. Other calls reserve a short time ahead, so that an
# urgent call precedes all that have no reservation yet.
_AHEAD_MS, _URGENT_AHEAD_MS = 1000, 60_000
# A reservation used later than this would exceed the rate of the calls after it.
_LATE_MS = 250

Outcome = Literal["ok", "busy", "other"]


class RateLimiter:
    """Limits of one provider. `lease_s` outlives the longest call."""

    def __init__(
        self, client: Any, keys: QueueKeys, provider: str, limits: RateLimits, *, lease_s: float
    ) -> None:
        self._client = client
        self._keys = [
            keys.llm_rate(provider),
            keys.llm_flight(provider),
            keys.llm_reserved(provider),
        ]
        self._limits = limits
        self._lease_ms = int(lease_s * 1000)
        self._requests = call_pace(limits.requests_per_minute)
        self._tokens = call_pace(limits.tokens_per_minute)

    async def admit(self, call_id: str, *, urgent: bool, tokens: int) -> float:
        """Return 0 when the call may start (release it afterwards), else the seconds to wait."""
        limits = self._limits
        args = [
            call_id,
            int(urgent),
            # A call larger than a minute's tokens uses one whole minute, not several.
            min(tokens, limits.tokens_per_minute),
            self._requests.step_ms,
            self._requests.burst,
            self._tokens.step_ms,
            self._tokens.burst,
            limits.max_concurrency,
            limits.urgent_share,
            self._lease_ms,
            _URGENT_AHEAD_MS if urgent else _AHEAD_MS,
            _LATE_MS,
            LLM_RATE_TTL_S * 1000,
        ]
        return float(await _ADMIT.run(self._client, self._keys, args)) / 1000

    async def release(self, call_id: str, outcome: Outcome, *, wait_s: float | None = None) -> int:
        """Record the end of a call; returns the new limit on calls in flight."""
        args = [
            call_id,
            outcome,
            int((wait_s or 0) * 1000),
            self._limits.max_concurrency,
            LLM_RATE_TTL_S * 1000,
        ]
        return int(await _RELEASE.run(self._client, self._keys[:2], args))
