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


# An index outlives the values that it lists, and what has ended a write, by this many ms.
CACHE_INDEX_MARGIN_MS = 120_000

# Longest TTL of any cached value, seconds; settings and calls stay below it.
CACHE_MAX_TTL_S = 604_800.0

# Appends kept aside in one conversation: most of them, most bytes of all, TTL in ms. Every append
# to a window with a gap reads them all.
CACHE_ASIDE_APPENDS, CACHE_ASIDE_BYTES, CACHE_ASIDE_TTL_MS = 256, 262_144, 60_000

# A script copies what passes through it. A larger value passes by it, bytes, and so do the messages of
# a window that are larger together; it waits for its script for this time, ms.
CACHE_LARGE, CACHE_STAGED_TTL_MS = 262_144, 60_000
CACHE_LARGE_TOGETHER = 524_288
# Largest message in a window, bytes: the script that appends it carries it.
CACHE_MOST_MESSAGE_BYTES = 1_048_576

# The last token of a named lease is remembered for this time, ms. Without it, the time makes it grow.
CACHE_FENCE_TTL_MS = 604_800_000

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

    def window_intents(self, agent_id: str, conversation: str) -> str:
        """Sorted set: intents to change a conversation."""
        return f"{self.prefix}{{{agent_id}}}:messages:intents:{conversation}"

    def message(self, scope: str, message_id: str) -> str:
        """String: the version of a message's entry. The keys of its value begin with this key."""
        return f"{self.prefix}message:{{{quoted(scope)}:{quoted(message_id)}}}"

    def session(self, agent_id: str, session_id: str) -> str:
        """String: a session's TTL and its envelope."""
        return f"{self.prefix}{{{agent_id}}}:session:{session_id}"

    def dependency(self, name: str) -> str:
        """Sorted set: agent that depends on the name -> time of its record; '' if it overflowed."""
        return f"{self.prefix}dependency:{{{quoted(name)}}}"

    def organisation(self, name: str) -> str:
        """Sorted set: agent with values of the organization -> time of its record; '' as above."""
        return f"{self.prefix}organisation:{{{quoted(name)}}}"

    def lease(self, name: str) -> str:
        """String: owner and token of a named lease."""
        return f"{self.prefix}lease:{{{quoted(name)}}}"

    def fence(self, name: str) -> str:
        """String: the last token of a named lease."""
        return f"{self.prefix}lease:{{{quoted(name)}}}:fence"

    @property
    def counters(self) -> str:
        """Hash: counter -> its sum over all processes."""
        return f"{self.prefix}counters"

    @property
    def backplane(self) -> str:
        """Stream: invalidations for the copies inside processes, and wake-ups of waiting loads."""
        return f"{self.prefix}backplane"


def intents_of(key: str) -> str:
    """Sorted set: intents to change an entry (an agent's or a message's), a dependency or an organization."""
    return f"{key}:intents"


def staged_of(key: str, token: bytes) -> str:
    """String or sorted set: a large value of an entry, from when it is sent until its fill."""
    return f"{key}:staged:{token.hex()}"


def bounded_ttl_s(seconds: float) -> float:
    """A TTL that the server takes: at most the longest, and 0 for what is negative or no number."""
    return min(seconds, CACHE_MAX_TTL_S) if seconds > 0 else 0.0


def quoted(name: str) -> str:
    """A name as a part of a key: two names never make one key, nor end its hash tag."""
    if "%" not in name and ":" not in name and "}" not in name:
        return name
    return name.replace("%", "%25").replace(":", "%3A").replace("}", "%7D")


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
        "the token of the process that loads the value, whether others wait, time and version of the grant",
        "TTL LETTA_CACHE_LEASE_S",
    ),
    KeySpec(
        "lc:{<agent>}:staged:<token>, lc:{<agent>}:messages:staged:<token>",
        "string, sorted set",
        "a value over 256 KiB, or messages over 512 KiB, on the way: their fill renames the key",
        "TTL 60 s",
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
        "a window's version, when its load began, newest message, length; if it reaches the beginning, has a gap",
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
        "TTL 60 s; 256 appends, 256 KiB in all",
    ),
    KeySpec(
        "lc:{<agent>}:intents, lc:{<agent>}:messages:intents:<conversation>",
        "sorted set",
        "the writes under way: while one stands, nothing is loaded under a lease, so nothing is stored",
        "TTL LETTA_CACHE_INTENT_S + 120 s; one member a write, removed at its end",
    ),
    KeySpec(
        "lc:message:{<scope>:<id>}, lc:message:{<scope>:<id>}:body, :staged:<token>",
        "string",
        "the version of one message's entry, and the message in its envelope",
        "TTL LETTA_CACHE_MESSAGE_TTL_S; LETTA_CACHE_MAX_VALUE_BYTES",
    ),
    KeySpec(
        "lc:message:{<scope>:<id>}:lease:body",
        "string",
        "the token of the process that loads or puts the message",
        "TTL LETTA_CACHE_LEASE_S",
    ),
    KeySpec(
        "lc:message:{<scope>:<id>}:intents",
        "sorted set",
        "the writes of the message under way",
        "TTL LETTA_CACHE_INTENT_S + 120 s; one member a write, removed at its end",
    ),
    KeySpec(
        "lc:{<agent>}:session:<id>",
        "string",
        "a session's TTL and its data, in an envelope",
        "TTL LETTA_CACHE_SESSION_TTL_S, renewed when read; LETTA_CACHE_MAX_VALUE_BYTES",
    ),
    KeySpec(
        "lc:dependency:{<name>}, lc:organisation:{<name>}",
        "sorted set",
        "the agents with values that depend on a block, tool, source or tag, or belong to an organization",
        "TTL of the values + 120 s; LETTA_CACHE_MAX_DEPENDENTS agents",
    ),
    KeySpec(
        "lc:dependency:{<name>}:intents, lc:organisation:{<name>}:intents",
        "sorted set",
        "the writes under way, and the time of the last one: loads from before it are not stored",
        "TTL LETTA_CACHE_INTENT_S + 120 s; one member a write, removed at its end",
    ),
    KeySpec(
        "lc:lease:{<name>}",
        "string",
        "a named lease: its owner and its fencing token",
        "TTL ttl_s of the call, renewed while it is held; 24 bytes",
    ),
    KeySpec(
        "lc:lease:{<name>}:fence",
        "string",
        "the last token of a named lease, so that the next is greater",
        "TTL 7 d; 16 bytes",
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
