"""
Decides which parts of an agent's state a read returns, and cuts a full state down to them.

Pure, and independent of the Letta server: states are JSON here. The rules are those of
`_apply_relationship_filters` and `Agent.to_pydantic_async`, whose digests agents.py checks.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

_NONE, _EMPTY = msgspec.Raw(b"null"), msgspec.Raw(b"[]")
_GIT_TAG = "git-memory-enabled"


@dataclass(frozen=True, slots=True)
class StatePart:
    """The legacy and the new argument that load a part, and the fields of a state without the part."""

    relationships: frozenset[str]
    include: str
    absent: dict[str, msgspec.Raw]


PARTS: dict[str, StatePart] = {
    "memory": StatePart(frozenset({"memory"}), "agent.blocks", {"blocks": _EMPTY}),
    "tools": StatePart(frozenset({"tools"}), "agent.tools", {"tools": _EMPTY}),
    "sources": StatePart(frozenset({"sources"}), "agent.sources", {"sources": _EMPTY}),
    "tags": StatePart(frozenset({"tags"}), "agent.tags", {"tags": _EMPTY}),
    "identities": StatePart(
        frozenset({"identity_ids"}),
        "agent.identities",
        {"identity_ids": _EMPTY, "identities": _EMPTY},
    ),
    "group": StatePart(
        frozenset({"multi_agent_group"}),
        "agent.managed_group",
        {"multi_agent_group": _NONE, "managed_group": _NONE},
    ),
    "secrets": StatePart(
        frozenset({"tool_exec_environment_variables", "secrets"}),
        "agent.secrets",
        {"tool_exec_environment_variables": _EMPTY, "secrets": _EMPTY},
    ),
}
ALL = frozenset(PARTS)


def parts_of(relationships: Iterable[str] | None, include: Iterable[str]) -> frozenset[str]:
    """
    The parts that a read with these arguments returns.

    `include` decides unless it is empty. Memory needs the tags: they tell whether it is in git.
    """
    new = frozenset(include)
    if new:
        found = {name for name, part in PARTS.items() if part.include in new}
    elif relationships is None:
        return ALL
    else:
        old = frozenset(relationships)
        found = {name for name, part in PARTS.items() if part.relationships & old}
    return frozenset(found | {"tags"} if "memory" in found else found)


def scope_of(parts: frozenset[str], version: str) -> str:
    """The scope under which these parts are cached, for one version of the Letta server."""
    return f"{version}:{'+'.join(sorted(parts)) if parts != ALL else 'all'}"


def cut(state: bytes, parts: frozenset[str]) -> bytes:
    """The JSON of a state with only these parts, as the server would have loaded it."""
    if parts == ALL:
        return state
    fields = msgspec.json.decode(state, type=dict[str, msgspec.Raw])
    for name, part in PARTS.items():
        if name not in parts:
            fields.update(part.absent)
    memory = msgspec.json.decode(fields["memory"], type=dict[str, msgspec.Raw])
    if "memory" not in parts:
        memory["blocks"] = memory["file_blocks"] = _EMPTY
    if "tags" not in parts:
        memory["git_enabled"] = msgspec.Raw(b"false")
    fields["memory"] = msgspec.Raw(msgspec.json.encode(memory))
    return msgspec.json.encode(fields)


class _Row(msgspec.Struct):
    id: str


class _File(msgspec.Struct):
    file_id: str
    source_id: str


class _Memory(msgspec.Struct):
    file_blocks: list[_File] = []


class _Rows(msgspec.Struct):
    memory: _Memory
    blocks: list[_Row] = []
    tools: list[_Row] = []
    sources: list[_Row] = []
    identities: list[_Row] = []
    managed_group: _Row | None = None


_rows = msgspec.json.Decoder(_Rows)


def rows_in(state: bytes) -> list[str]:
    """
    The ids of the shared rows in a state: blocks, tools, sources, identities, files, its group.

    A write to one of them invalidates its id as a dependency. Writes to the agent's row, its tags,
    its secrets and its rows in join tables invalidate the agent itself.
    """
    if not state:
        return []
    rows = _rows.decode(state)
    files = rows.memory.file_blocks
    found = [*rows.blocks, *rows.tools, *rows.sources, *rows.identities]
    ids = [row.id for row in found if row.id] + [file.file_id for file in files]
    ids += [file.source_id for file in files]
    if rows.managed_group is not None:
        ids.append(rows.managed_group.id)
    return list(dict.fromkeys(ids))
