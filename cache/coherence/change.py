"""Defines what one call invalidates, and the keys that stand for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cache.coherence.results import lease_key, value_key
from cache.keys import CacheKeys, intents_of


@dataclass(frozen=True, slots=True)
class Part:
    """The keys of one name, all on one cluster slot."""

    index: str = ""  # of the agents that depend on it
    intents: str = ""
    gone: tuple[str, ...] = ()  # unlinking them forgets it
    name: str = ""  # what copies and flights of it begin with, in every process
    organisation: str = ""  # whose values a scan finds, if the index does not list them all


@dataclass(frozen=True, slots=True)
class Change:
    """
    What is invalidated together. With a token it also begins that intent, or ends it.

    Args:
        windows: agents, for all of their conversations.
        conversations: pairs of agent and conversation.
        messages: pairs of scope and id.
        ttl_ms: for which the intent stands; 0 ends it.
    """

    agents: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    organisations: tuple[str, ...] = ()
    conversations: tuple[tuple[str, str], ...] = ()
    windows: tuple[str, ...] = ()
    messages: tuple[tuple[str, str], ...] = ()
    everything: bool = False
    token: bytes = b""
    ttl_ms: int = 0

    def __len__(self) -> int:
        """The number of names."""
        names = (self.agents, self.dependencies, self.organisations, self.conversations)
        return sum(map(len, (*names, self.windows, self.messages))) + self.everything

    def parts(self, keys: CacheKeys) -> Iterator[Part]:
        entries = [keys.agent(agent) for agent in self.agents]
        entries += [keys.message(scope, message) for scope, message in self.messages]
        for key in entries:
            yield Part(intents=intents_of(key), gone=(key,), name=key)
        for agent in self.windows:
            key = keys.windows(agent)
            yield Part(gone=(key,), name=key)
        for agent, conversation in self.conversations:
            key, field = keys.windows(agent), f"state:{conversation}"
            gone = (value_key(key, field), lease_key(key, field), keys.window(agent, conversation))
            intents = keys.window_intents(agent, conversation)
            yield Part(intents=intents, gone=gone, name=f"{key}\0{conversation}")
        for name in self.dependencies:
            yield Part(index=keys.dependency(name))
        for name in self.organisations:
            yield Part(index=keys.organisation(name), organisation=name)


EVERYTHING = Change(everything=True)
