"""
Names every key of the cache, its TTL and its bound. docs/keys.md is generated from CATALOGUE.

All keys begin with `lc:`, so one ACL pattern covers them.
"""

from __future__ import annotations

from dataclasses import dataclass

CACHE_PREFIX = "lc:"


@dataclass(frozen=True, slots=True)
class KeySpec:
    """One row of docs/keys.md. `bound` says what keeps the key small."""

    pattern: str
    type: str
    holds: str
    bound: str


# A dependency's index outlives the values that it lists by this many ms.
CACHE_INDEX_MARGIN_MS = 120_000

# Longest TTL of any cached value, seconds; settings and calls stay below it.
CACHE_MAX_TTL_S = 604_800.0

# Appends kept aside in one conversation: most of them, most bytes of one, TTL in ms.
CACHE_ASIDE_APPENDS, CACHE_ASIDE_BYTES, CACHE_ASIDE_TTL_MS = 256, 65_536, 60_000

# The counters on the server are forgotten after this time without an addition, seconds.
CACHE_COUNTERS_TTL_S = 2_592_000

# About this many of the newest backplane events are kept.
CACHE_BACKPLANE_EVENTS = 10_000


@dataclass(frozen=True, slots=True)
class CacheKeys:
    """
    Builds the names of keys. All keys of one agent share the hash tag `{agent id}`, so they lie
    on one cluster slot and a script is atomic over them.
    """

    prefix: str = CACHE_PREFIX

    def agent(self, agent_id: str) -> str:
        """String: the version of the agent's entry. The keys of its values begin with this key."""
        return f"{self.prefix}{{{agent_id}}}"

    def windows(self, agent_id: str) -> str:
        """String: the version of the agent's windows. The keys of their states begin with it."""
        return f"{self.prefix}{{{agent_id}}}:messages"

    def window(self, agent_id: str, conversation: str) -> str:
        """Sorted set: sequence_id -> message."""
        return f"{self.prefix}{{{agent_id}}}:messages:window:{conversation}"

    def aside(self, agent_id: str, conversation: str) -> str:
        """Hash: first sequence_id -> an append that waits for its predecessor, or for a load."""
        return f"{self.prefix}{{{agent_id}}}:messages:aside:{conversation}"

    def session(self, agent_id: str, session_id: str) -> str:
        """String: a session's TTL and its envelope."""
        return f"{self.prefix}{{{agent_id}}}:session:{session_id}"

    def dependency(self, name: str) -> str:
        """Hash: the agents that depend on the name, its last invalidation, and an overflow flag."""
        return f"{self.prefix}dependency:{{{name}}}"

    def generation(self, organisation: str) -> str:
        """String: 8 random bytes, replaced when the organization is invalidated."""
        return f"{self.prefix}generation:{organisation}"

    @property
    def era(self) -> str:
        """String: the era that every value must belong to."""
        return f"{self.prefix}era:{{era}}"

    @property
    def members(self) -> str:
        """Sorted set: process -> end of its lease, the server's Unix ms. On the era's slot."""
        return f"{self.prefix}members:{{era}}"

    @property
    def counters(self) -> str:
        """Hash: counter -> its sum over all processes."""
        return f"{self.prefix}counters"

    @property
    def backplane(self) -> str:
        """Stream: invalidations for the copies inside processes, and wake-ups of waiting loads."""
        return f"{self.prefix}backplane"


CATALOGUE: tuple[KeySpec, ...] = (
    KeySpec(
        "lc:{<agent>}",
        "string",
        "the entry's version: a value is served only if it carries this version; an invalidation deletes it",
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
        "the token of the process that loads the value, whether others wait, the version of the grant",
        "TTL LETTA_CACHE_LEASE_S",
    ),
    KeySpec(
        "lc:{<agent>}:messages",
        "string",
        "the version of the agent's windows",
        "TTL LETTA_CACHE_MESSAGE_TTL_S; 16 bytes",
    ),
    KeySpec(
        "lc:{<agent>}:messages:state:<conversation>",
        "string",
        "a window's version, newest message and length, and whether it reaches the beginning, and has a gap",
        "TTL LETTA_CACHE_MESSAGE_TTL_S",
    ),
    KeySpec(
        "lc:{<agent>}:messages:lease:state:<conversation>",
        "string",
        "the token of the process that loads the window",
        "TTL LETTA_CACHE_LEASE_S",
    ),
    KeySpec(
        "lc:{<agent>}:messages:window:<conversation>",
        "sorted set",
        "sequence_id -> message: the newest messages of a conversation",
        "TTL LETTA_CACHE_MESSAGE_TTL_S; LETTA_CACHE_MESSAGE_WINDOW messages",
    ),
    KeySpec(
        "lc:{<agent>}:messages:aside:<conversation>",
        "hash",
        "appends that wait for their predecessor, or for a load that may lack them",
        "TTL 60 s; 256 appends of 64 KiB",
    ),
    KeySpec(
        "lc:{<agent>}:session:<id>",
        "string",
        "a session's TTL and its data, in an envelope",
        "TTL LETTA_CACHE_SESSION_TTL_S, renewed when read; LETTA_CACHE_MAX_VALUE_BYTES",
    ),
    KeySpec(
        "lc:dependency:{<name>}",
        "hash",
        "the agents whose values depend on a block, tool, source or tag",
        "TTL of the values + 120 s; LETTA_CACHE_MAX_DEPENDENTS agents",
    ),
    KeySpec(
        "lc:generation:<organisation>",
        "string",
        "8 bytes that every value of the organization must carry",
        "TTL 7 d, renewed with every value stored",
    ),
    KeySpec(
        "lc:era:{era}",
        "string",
        "16 bytes that every value must carry; expires when a process stops renewing its lease",
        "TTL of the shortest lease of a member",
    ),
    KeySpec(
        "lc:members:{era}",
        "sorted set",
        "member process -> end of its lease, Unix ms",
        "one member for each open cache, removed after LETTA_CACHE_MEMBER_LEASE_S; TTL 7 d, renewed",
    ),
    KeySpec(
        "lc:counters",
        "hash",
        "counters of all processes, summed: `letta-workers cache stats`",
        "one field for each counter; TTL 30 d, renewed",
    ),
    KeySpec(
        "lc:backplane",
        "stream",
        "invalidations and wake-ups, for processes that listen",
        "about the newest 10,000 events; TTL 7 d",
    ),
)
