"""
Names every key of the cache. docs/keys.md says what each one holds and what bounds it.

All keys begin with `lc:`, so one ACL pattern covers them.
"""

from __future__ import annotations

from dataclasses import dataclass

CACHE_PREFIX = "lc:"

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
