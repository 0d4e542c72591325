"""
Every key, channel and TTL of the cache. docs/keys.md is generated from CATALOGUE.

All begin with `lc:`, so that one ACL pattern covers them.
"""

from __future__ import annotations

from dataclasses import dataclass

CACHE_PREFIX = "lc:"


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One line of docs/keys.md: `pattern` as written, `bound` what keeps it small."""

    pattern: str
    type: str
    holds: str
    bound: str


# A dependency's index outlives the values that it lists by this, ms.
CACHE_INDEX_MARGIN_MS = 120_000

# The longest life of any cached value, seconds; settings and calls stay below.
CACHE_MAX_TTL_S = 604_800.0

# The newest events of the backplane that are kept, about.
CACHE_BACKPLANE_EVENTS = 10_000


@dataclass(frozen=True, slots=True)
class CacheKeys:
    """
    Names on the cache's server. What belongs to one agent shares the hash tag `{agent id}`:
    one cluster slot, so that every script is atomic over it.
    """

    prefix: str = CACHE_PREFIX

    def agent(self, agent_id: str) -> str:
        """String: the floor of the agent's values. The values' own keys begin with this one."""
        return f"{self.prefix}{{{agent_id}}}"

    def windows(self, agent_id: str) -> str:
        """String: the floor of the agent's windows. Their states' keys begin with this one."""
        return f"{self.prefix}{{{agent_id}}}:messages"

    def window(self, agent_id: str, conversation: str) -> str:
        """Sorted set: sequence_id -> message."""
        return f"{self.prefix}{{{agent_id}}}:messages:window:{conversation}"

    def session(self, agent_id: str, session_id: str) -> str:
        return f"{self.prefix}{{{agent_id}}}:session:{session_id}"

    def dependency(self, name: str) -> str:
        """Hash: who holds what is named, the last invalidation, and whether it overflowed."""
        return f"{self.prefix}dependency:{{{name}}}"

    def generation(self, organisation: str) -> str:
        return f"{self.prefix}generation:{organisation}"

    @property
    def era(self) -> str:
        """String: what every value must be of to count, whatever its floor."""
        return f"{self.prefix}era:{{era}}"

    @property
    def members(self) -> str:
        """Sorted set: process -> end of its lease, the server's Unix ms. On the era's slot."""
        return f"{self.prefix}members:{{era}}"

    @property
    def backplane(self) -> str:
        """Stream: invalidations for the copies inside processes, and wake-ups."""
        return f"{self.prefix}backplane"


CATALOGUE: tuple[KeySpec, ...] = (
    KeySpec(
        "lc:{<agent>}",
        "string",
        "the floor: values of the agent count only under the floor that they were stored under",
        "TTL of the longest-lived value; 16 bytes",
    ),
    KeySpec(
        "lc:{<agent>}:state:<scope>, :state@<organisation>:<scope>",
        "string",
        "a cached state, in its envelope",
        "TTL LETTA_CACHE_AGENT_TTL_S; LETTA_CACHE_MAX_VALUE_BYTES",
    ),
    KeySpec(
        "lc:{<agent>}:block:<label>, :context:<hash>",
        "string",
        "a memory block or a compiled context, in its envelope",
        "TTL LETTA_CACHE_AGENT_TTL_S; LETTA_CACHE_MAX_VALUE_BYTES",
    ),
    KeySpec(
        "lc:{<agent>}:lease:<kind>:<name>",
        "string",
        "who loads that value, whether others wait, and under which floor",
        "TTL LETTA_CACHE_LEASE_S",
    ),
    KeySpec(
        "lc:{<agent>}:messages",
        "string",
        "the floor of the agent's windows",
        "TTL LETTA_CACHE_MESSAGE_TTL_S; 16 bytes",
    ),
    KeySpec(
        "lc:{<agent>}:messages:state:<conversation>",
        "string",
        "a window's floor, newest message, length, and whether it reaches the beginning",
        "TTL LETTA_CACHE_MESSAGE_TTL_S",
    ),
    KeySpec(
        "lc:{<agent>}:messages:lease:state:<conversation>",
        "string",
        "who loads that window",
        "TTL LETTA_CACHE_LEASE_S",
    ),
    KeySpec(
        "lc:{<agent>}:messages:window:<conversation>",
        "sorted set",
        "sequence_id -> message: the newest of a conversation",
        "TTL LETTA_CACHE_MESSAGE_TTL_S; LETTA_CACHE_MESSAGE_WINDOW messages",
    ),
    KeySpec(
        "lc:{<agent>}:session:<id>",
        "string",
        "a session's data",
        "TTL LETTA_CACHE_SESSION_TTL_S, renewed when read; LETTA_CACHE_MAX_VALUE_BYTES",
    ),
    KeySpec(
        "lc:dependency:{<name>}",
        "hash",
        "agents whose values hold a block, tool, source or tag",
        "TTL of the values + 120 s; LETTA_CACHE_MAX_DEPENDENTS agents",
    ),
    KeySpec(
        "lc:generation:<organisation>",
        "string",
        "8 bytes that every value of the organisation must carry",
        "TTL 7 d, renewed with every value stored",
    ),
    KeySpec(
        "lc:era:{era}",
        "string",
        "16 bytes that every value must be of; gone when a process falls silent",
        "TTL of the shortest lease of a member",
    ),
    KeySpec(
        "lc:members:{era}",
        "sorted set",
        "process that may invalidate -> end of its lease, Unix ms",
        "one member an open cache, removed after LETTA_CACHE_MEMBER_LEASE_S; TTL 7 d, renewed",
    ),
    KeySpec(
        "lc:backplane",
        "stream",
        "invalidations and wake-ups, for processes that listen",
        "newest 10,000, about; TTL 7 d",
    ),
)
