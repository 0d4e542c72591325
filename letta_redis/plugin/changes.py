"""
Says which cached values a changed row belongs to; pure.

An agent's state is made of rows of many tables. A row that names its agent changes
that agent's state. A shared row (a block, a tool, a source, an identity, a group, a
file) names none: the states that show it depend on its id (`includes.rows_in`).
Deletions that the database cascades need nothing more: what they cascade from is
shared, or is the agent itself. A message is a value of its own, and depends on the rows with
whose deletion the database changes it.
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
    What one statement says about the rows that it changes.

    Args:
        given: by column, the values in its VALUES or SET.
        pinned: by column, the only values that its WHERE lets through.
        upsert: on a conflict it updates a row, whose id may not be the one given.
    """

    table: str
    verb: Verb
    given: Values = field(default_factory=dict)
    pinned: Values = field(default_factory=dict)
    upsert: bool = False


@dataclass(frozen=True, slots=True)
class Rule:
    """
    How a table's rows lead to cached values.

    Args:
        owner: the column that names the agent (or the user) whose value has the row.
        link: the column of a shared row. Whoever depends on that sees that this row was deleted. The
            owner's own: whoever depends on the row sees its deletion only.
        shared: whether values depend on the row's own id.
        verbs: the statements that change a cached value.
        listed: the columns of an agent or a conversation whose lists of messages have the row. Every
            statement changes those.
    """

    owner: str = ""
    link: str = ""
    shared: bool = False
    verbs: frozenset[Verb] = _ALL
    listed: tuple[str, ...] = ()


_EXISTING: frozenset[Verb] = frozenset({"update", "delete"})
_DELETED: frozenset[Verb] = frozenset({"delete"})
RULES: Mapping[str, Rule] = {
    # Its messages go with it.
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
    # A state has nothing of the file's own row: only its deletion is seen, by the cascade.
    "files": Rule(shared=True, verbs=_DELETED),
    "messages": Rule(owner="id", link="agent_id", verbs=_EXISTING, listed=("agent_id",)),
    "conversation_messages": Rule(listed=("agent_id", "conversation_id")),
    # The database takes a deleted one out of its messages.
    **dict.fromkeys(("runs", "steps", "conversations"), Rule(shared=True, verbs=_DELETED)),
    "users": Rule(owner="id", verbs=_EXISTING),
    "organizations": Rule(verbs=_DELETED),
}
_NONE: frozenset[str] = frozenset()


def windows_of(owner: str) -> str:
    """The id under which the windows of an agent's or a conversation's messages are cached."""
    return f"messages-of-{owner}"


@dataclass(slots=True)
class Changes:
    """What a transaction has changed so far: names for `Invalidator.begin_write`."""

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

        Returns a column whose values in the changed rows must be looked up and pinned, because
        the statement does not say which rows it changes; or "" when everything is noted.
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
