"""
Reads the tokens that an answer used, by either provider's field names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worker.numbers import whole

# Above any real count. It keeps sums of usage within 64 bits.
_MOST_TOKENS = 10**12


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider counted them; `cached` are part of `input`, `reasoning` of `output`."""

    input: int = 0
    output: int = 0
    cached: int = 0
    reasoning: int = 0

    @property
    def is_empty(self) -> bool:
        return not (self.input or self.output)


def read_usage(body: Any) -> Usage:
    """Tokens of a response body, by OpenAI's or Anthropic's field names."""
    usage = body.get("usage") if isinstance(body, Mapping) else None
    if not isinstance(usage, Mapping):
        return Usage()
    cached_in = _inner(usage, "prompt_tokens_details") or _inner(usage, "input_tokens_details")
    thought = _inner(usage, "completion_tokens_details") or _inner(usage, "output_tokens_details")
    read = _count(usage.get("cache_read_input_tokens"))
    written = _count(usage.get("cache_creation_input_tokens"))
    # Anthropic counts cache reads and writes in addition to the input, OpenAI as part of it.
    return Usage(
        input=_count(usage.get("prompt_tokens", usage.get("input_tokens"))) + read + written,
        output=_count(usage.get("completion_tokens", usage.get("output_tokens"))),
        cached=_count(cached_in.get("cached_tokens")) + read,
        reasoning=_count(thought.get("reasoning_tokens")),
    )


def _inner(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = usage.get(name)
    return found if isinstance(found, Mapping) else {}


def _count(value: Any) -> int:
    return whole(value, most=_MOST_TOKENS)
