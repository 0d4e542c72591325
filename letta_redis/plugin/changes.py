"""
Maps a changed row to the cached values that contain it; pure.

An agent's state consists of rows of many tables. A row that names its agent changes
that agent's state. A shared row (a block, a tool, a source, an identity, a group, a
file) names no agent: the states that contain it depend on its id (`includes.rows_in`).
Cascading deletions need no rule: they start at a shared row or at the agent itself.
A message is cached on its own, and depends on the rows whose deletion changes it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Values = Mapping[str, frozenset[str]]
Verb = Literal["insert", "update", "delete"]
_ALL: frozenset[Verb] = frozenset({"insert", "update", "delete"})


@dataclass(frozen=True, slots=True)
class Write:
    """
    What one statement tells about the rows that it changes.

    Args:
        given: by column, the values in its VALUES or SET.
        pinned: by column, the only values that its WHERE allows.
        upsert: on a conflict it updates a row, which may have another id than the given one.
    """

    table: str
    verb: Verb
    given: Values = field(default_factory=dict)
    pinned: Values = field(default_factory=dict)
    upsert: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """
    Which cached values a table's rows change.

    Args:
        owner: the column that names the agent (or the user) whose value contains the row.
        link: the column that names a shared row: deleting this row invalidates the values that
            depend on the shared one. If it is the owner's column, only a deletion of this row
            invalidates the values that depend on it.
        shared: whether values depend on the row's own id.
        verbs: the statements that change a cached value.
        listed: the columns that name an agent or a conversation whose lists of messages contain
            the row. Every statement changes those lists.
    """

    owner: str = ""
    link: str = ""
    shared: bool = False
    verbs: frozenset[Verb] = _ALL
    listed: tuple[str, ...] = ()


_EXISTING: frozenset[Verb] = frozenset({"update", "delete"})
_DELETED: frozenset[Verb] = frozenset({"delete"})
RULES: Mapping[str, Rule] = {
    # Deleting it deletes its messages.
    "agents": Rule(owner="id", link="id"),
    "agents_tags": Rule(owner="agent_id"),
    "agent_environment_variables": Rule(owner="agent_id"),
    "blocks_agents": Rule(owner="agent_id", link="block_id"),
    "tools_agents": Rule(owner="agent_id", link="tool_id"),
    "sources_agents": Rule(owner="agent_id", link="source_id"),
    "identities_agents": Rule(owner="agent_id", link="identity_id"),
    "files_agents": Rule(owner="agent_id", link="file_id"),
    "groups": Rule(owner="manager_agent_id", shared=True),
    "block": Rule(shared=True),
    "tools": Rule(shared=True),
    "sources": Rule(shared=True),
    "identities": Rule(shared=True),
    # A state contains nothing of the file's own row, so only its deletion counts, by the cascade.
    "files": Rule(shared=True, verbs=_DELETED),
    "messages": Rule(owner="id", link="agent_id", verbs=_EXISTING, listed=("agent_id",)),
    "conversation_messages": Rule(listed=("agent_id", "conversation_id")),
    # Deleting one clears the reference in its messages.
    **dict.fromkeys(("runs", "steps", "conversations"), Rule(shared=True, verbs=_DELETED)),
    "users": Rule(owner="id", verbs=_EXISTING),
    "organizations": Rule(verbs=_DELETED),
}
_NONE: frozenset[str] = frozenset()


def windows_of(owner: str) -> str:
    """The id under which the message windows of an agent or a conversation are cached."""
    return f"messages-of-{owner}"


@dataclass(slots=True)
class Changes:
    """What a transaction has changed so far, as names for `Invalidator.begin_write`."""

    agents: set[str] = field(default_factory=set)
    dependencies: set[str] = field(default_factory=set)
    organisations: set[str] = field(default_factory=set)

    def __bool__(self) -> bool:
        return bool(self.agents or self.dependencies or self.organisations)

    def names(self) -> dict[str, Any]:
        """The arguments of `begin_write` and `invalidate`."""
        return {
            "agents": self.agents,
            "dependencies": self.dependencies,
            "organisations": self.organisations,
        }

    def note(self, write: Write) -> str:
        """
        Add what a statement changes.

        Returns "" when everything is noted. Otherwise the statement does not tell which rows it
        changes: look up the returned column in these rows, pin its values, and call again.
        """
        rule = RULES.get(write.table)
        if rule is None:
            return ""
        for column in rule.listed:
            if write.verb != "insert" and column not in write.pinned:
                return column
            values = write.given.get(column, _NONE) | write.pinned.get(column, _NONE)
            self.agents |= {windows_of(value) for value in values}
        self.agents |= write.given.get(rule.owner, _NONE) if write.verb in rule.verbs else _NONE
        if write.verb == "insert":
            if write.upsert and (rule.shared or rule.owner == "id"):
                self.organisations |= write.given.get("organization_id", _NONE)
            return ""
        if write.verb not in rule.verbs:
            return ""
        return self._note_existing(write, rule)

    def _note_existing(self, write: Write, rule: Rule) -> str:
        if write.table == "organizations":
            self.organisations |= write.pinned.get("id", _NONE)
            return "" if "id" in write.pinned else "id"
        if rule.shared:
            self.dependencies |= write.pinned.get("id", _NONE)
            return "" if "id" in write.pinned else "id"
        is_known = rule.owner in write.pinned
        if is_known:
            self.agents |= write.pinned[rule.owner]
        if write.verb == "delete" and rule.link in write.pinned:
            if not is_known or rule.link == rule.owner:
                self.dependencies |= write.pinned[rule.link]
            is_known = True
        return "" if is_known else rule.owner
