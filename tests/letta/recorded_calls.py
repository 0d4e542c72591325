"""
The requests of which two Letta servers must think alike, in their order.

Each is a method, a path below /v1, a JSON body, and under which names ids of its answer are
kept: `{"agent": "id"}`. `{agent}` in a path or body is the id that this server has given.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple


class Call(NamedTuple):
    """A request of the set."""

    method: str
    path: str
    body: Any = None
    keep: Mapping[str, str] = MappingProxyType({})


_UNKNOWN = "00000000-0000-4000-8000-000000000000"
_EMBEDS = "openai/text-embedding-3-small"
_AGENT = {
    "model": "openai-proxy/gpt-4o-mini",
    "embedding": _EMBEDS,
    "include_base_tools": True,
}
_SOURCE = 'def {}(word: str) -> str:\n    """Say a word.\n\n    Args:\n        word (str): It.\n    """\n    return word\n'


def _said(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **more}


def _get(*paths: str) -> list[Call]:
    return [Call("GET", path) for path in paths]


def _shown(agent: str = "agent") -> list[Call]:
    """An agent as its several reads show it: each a different set of parts."""
    path = f"agents/{{{agent}}}"
    return _get(
        path,
        path,
        f"{path}?include_relationships=memory&include_relationships=tools",
        f"{path}?include=agent.blocks&include=agent.tags&include=agent.identities",
        f"{path}?include=agent.secrets&include=agent.sources&include=agent.managed_group",
        f"{path}/core-memory",
        f"{path}/tools",
    )


_ROWS = [
    Call("POST", "blocks/", {"label": "human", "value": "a person"}, {"human": "id"}),
    Call("POST", "blocks/", {"label": "notes", "value": "none", "limit": 5000}, {"notes": "id"}),
    Call("PATCH", "blocks/{notes}", {"value": "first note"}),
    Call("POST", "tools/", {"source_code": _SOURCE.format("say")}, {"say": "id"}),
    Call("POST", "tools/", {"source_code": _SOURCE.format("tell"), "tags": ["t"]}, {"tell": "id"}),
    Call("PUT", "tools/", {"source_code": _SOURCE.format("say"), "description": "Says it."}),
    Call("PATCH", "tools/{tell}", {"description": "Tells it."}),
    Call("POST", "sources/", {"name": "papers", "embedding": _EMBEDS}, {"papers": "id"}),
    Call("POST", "folders/", {"name": "folder", "embedding": _EMBEDS}, {"folder": "id"}),
    Call("PATCH", "sources/{papers}", {"description": "of the tests"}),
    Call(
        "POST",
        "identities/",
        {"identifier_key": "k1", "name": "One", "identity_type": "user"},
        {"one": "id"},
    ),
    Call(
        "POST",
        "identities/",
        {"identifier_key": "k2", "name": "Two", "identity_type": "org"},
        {"two": "id"},
    ),
    Call("PUT", "identities/", {"identifier_key": "k2", "name": "2", "identity_type": "org"}),
    *_get("blocks/", "blocks/count", "blocks/{human}", "blocks/{human}/agents"),
    *_get("tools/?name=say", "tools/{say}", "tools/{tell}", "tools/count?exclude_letta_tools=true"),
    *_get("sources/", "sources/{papers}", "sources/name/papers", "sources/count"),
    *_get("folders/", "folders/{folder}", "identities/", "identities/{one}", "identities/count"),
]

_AGENTS = [
    Call(
        "POST",
        "agents/",
        {
            **_AGENT,
            "name": "first",
            "memory_blocks": [{"label": "persona", "value": "an agent"}],
            "block_ids": ["{human}"],
            "tool_ids": ["{say}"],
            "tags": ["red", "round"],
            "secrets": {"KEY": "a secret"},
        },
        {"agent": "id"},
    ),
    Call("POST", "agents/", {**_AGENT, "name": "second", "tags": ["red"]}, {"other": "id"}),
    *_shown(),
    *_get("agents/?name=first", "agents/?tags=red&order=asc", "agents/count", "tags/"),
    Call("PATCH", "agents/{agent}", {"description": "it was changed", "tags": ["blue"]}),
    *_shown(),
    Call("PATCH", "agents/{agent}", {"system": "Another system prompt.", "metadata": {"a": 1}}),
    Call("PATCH", "agents/{agent}", {"secrets": {"KEY": "another", "MORE": "one"}}),
    *_get("agents/{agent}", "agents/{agent}?include=agent.secrets", "tags/?name=blue"),
    Call("PATCH", "agents/{agent}/core-memory/blocks/attach/{notes}"),
    *_get("agents/{agent}", "agents/{agent}/core-memory/blocks", "blocks/{notes}/agents"),
    Call("PATCH", "agents/{agent}/core-memory/blocks/human", {"value": "somebody else"}),
    *_get("agents/{agent}/core-memory/blocks/human", "agents/{agent}", "blocks/{human}"),
    Call("PATCH", "blocks/{notes}", {"value": "second note", "description": "of the tests"}),
    *_get("agents/{agent}", "agents/{agent}/core-memory/blocks/notes"),
    Call("PATCH", "agents/{agent}/core-memory/blocks/detach/{notes}"),
    *_get("agents/{agent}", "agents/{agent}/core-memory/blocks/notes"),
    Call("PATCH", "agents/{agent}/tools/attach/{tell}"),
    *_get("agents/{agent}/tools", "agents/{agent}"),
    Call("PUT", "tools/", {"source_code": _SOURCE.format("tell"), "description": "Tells again."}),
    *_get("agents/{agent}"),
    Call("PATCH", "agents/{agent}/tools/approval/tell", {"requires_approval": True}),
    *_get("agents/{agent}"),
    Call("PATCH", "agents/{agent}/tools/detach/{tell}"),
    *_get("agents/{agent}"),
    Call("PATCH", "agents/{agent}/sources/attach/{papers}"),
    Call("PATCH", "agents/{agent}/folders/attach/{folder}"),
    *_get("agents/{agent}", "agents/{agent}/sources", "agents/{agent}/folders"),
    *_get("sources/{papers}/agents", "folders/{folder}/agents", "agents/{agent}/files"),
    Call("PATCH", "agents/{agent}/folders/detach/{folder}"),
    *_get("agents/{agent}"),
    Call("PATCH", "agents/{agent}/identities/attach/{one}"),
    *_get("agents/{agent}?include=agent.identities", "identities/{one}/agents"),
    Call("PATCH", "identities/{one}", {"name": "Uno"}),
    Call("PUT", "identities/{one}/properties", [{"key": "age", "value": 1, "type": "number"}]),
    *_get("agents/{agent}", "agents/?identity_id={one}", "identities/{one}"),
    Call("PATCH", "agents/{agent}/identities/detach/{one}"),
    *_get("agents/{agent}"),
    Call(
        "POST",
        "groups/",
        {
            "agent_ids": ["{other}"],
            "description": "both",
            "manager_config": {"manager_type": "supervisor", "manager_agent_id": "{agent}"},
        },
        {"group": "id"},
    ),
    *_get("groups/", "groups/{group}", "agents/{agent}", "agents/{agent}/groups"),
    Call("PATCH", "groups/{group}", {"description": "changed"}),
    *_get("agents/{agent}?include=agent.managed_group", "groups/count"),
    Call("DELETE", "groups/{group}"),
    *_get("agents/{agent}", "groups/{group}"),
]

_ARCHIVES = [
    Call("POST", "archives/", {"name": "archive", "embedding": _EMBEDS}, {"arc": "id"}),
    Call("PATCH", "archives/{arc}", {"description": "of the tests"}),
    Call("PATCH", "agents/{agent}/archives/attach/{arc}"),
    Call(
        "POST", "archives/{arc}/passages", {"text": "a passage", "tags": ["p"]}, {"passage": "id"}
    ),
    Call("POST", "agents/{agent}/archival-memory", {"text": "another"}, {"memory": "0.id"}),
    *_get("archives/", "archives/{arc}", "archives/{arc}/agents", "agents/{agent}/archival-memory"),
    *_get("agents/{agent}/archival-memory/search?query=another", "agents/{agent}"),
    Call("DELETE", "agents/{agent}/archival-memory/{memory}"),
    Call("DELETE", "archives/{arc}/passages/{passage}"),
    *_get("agents/{agent}/archival-memory"),
    Call("PATCH", "agents/{agent}/archives/detach/{arc}"),
    Call("DELETE", "archives/{arc}"),
    *_get("archives/{arc}", "agents/{agent}"),
]

_MESSAGES = [
    Call("POST", "agents/{agent}/messages", _said("hello"), {"message": "messages.0.id"}),
    *_get("agents/{agent}", "agents/{agent}/messages", "agents/{agent}/messages?limit=1"),
    Call("POST", "agents/{agent}/messages/stream", _said("steps", stream_tokens=False)),
    Call("POST", "agents/{agent}/messages/stream", _said("tokens", stream_tokens=True)),
    *_get("agents/{agent}/messages?order=asc", "agents/{agent}/messages?after={message}&order=asc"),
    *_get("agents/{agent}/messages?before={message}", "messages/{message}", "agents/{agent}"),
    Call("PATCH", "agents/{agent}/core-memory/blocks/persona", {"value": "a changed agent"}),
    Call("POST", "agents/{agent}/messages", _said("and now?")),
    *_get("agents/{agent}", "agents/{agent}/context"),
    Call("POST", "agents/{agent}/messages/preview-raw-payload", _said("what would be sent?")),
    *_get("runs/?agent_id={agent}&order=asc"),
    Call("GET", "runs/?agent_id={agent}&order=asc&limit=1", None, {"run": "0.id"}),
    *_get("runs/{run}", "runs/{run}/messages", "runs/{run}/usage"),
    Call("GET", "runs/{run}/steps", None, {"step": "0.id"}),
    *_get("runs/active?agent_id={agent}", "steps/?agent_id={agent}&order=asc"),
    *_get("steps/{step}", "steps/{step}/messages", "steps/{step}/trace"),
    Call("PATCH", "steps/{step}/feedback", {"feedback": "positive"}),
    *_get("steps/{step}", "steps/?feedback=positive"),
    Call("POST", "conversations/?agent_id={agent}", {"summary": "talk"}, {"talk": "id"}),
    Call("POST", "conversations/{talk}/messages", _said("in a conversation", streaming=True)),
    Call("POST", "conversations/{talk}/messages", _said("once more", streaming=False)),
    *_get(
        "conversations/?agent_id={agent}", "conversations/{talk}", "conversations/{talk}/messages"
    ),
    Call("PATCH", "conversations/{talk}", {"summary": "a long talk"}),
    Call("POST", "conversations/{talk}/fork", None, {"fork": "id"}),
    *_get("conversations/{fork}/messages", "agents/{agent}/messages?conversation_id={talk}"),
    Call("DELETE", "conversations/{fork}"),
    *_get("conversations/{fork}", "conversations/{talk}", "agents/{agent}"),
    Call("DELETE", "runs/{run}"),
    *_get("runs/{run}", "messages/{message}", "agents/{agent}/messages?order=asc"),
    Call("POST", "agents/{agent}/recompile"),
    Call("PATCH", "agents/{agent}/reset-messages", {"add_default_initial_messages": False}),
    *_get("agents/{agent}", "agents/{agent}/messages"),
    Call("POST", "agents/{agent}/messages", _said("after the reset")),
    *_get("agents/{agent}", "agents/{agent}/messages"),
]

_ERRORS = [
    *_get(f"agents/agent-{_UNKNOWN}", "agents/nonsense", f"blocks/block-{_UNKNOWN}", "blocks/x"),
    *_get(f"tools/tool-{_UNKNOWN}", f"sources/source-{_UNKNOWN}", f"runs/run-{_UNKNOWN}"),
    *_get(f"steps/step-{_UNKNOWN}", f"groups/group-{_UNKNOWN}", f"identities/identity-{_UNKNOWN}"),
    *_get(f"conversations/conv-{_UNKNOWN}", f"messages/message-{_UNKNOWN}", "nowhere"),
    *_get("agents/{agent}?include=agent.nothing", "agents/{agent}?include_relationships=nothing"),
    Call("POST", "agents/", {"name": "no model"}),
    Call("POST", "agents/", {**_AGENT, "name": "x", "model": "nobody/nothing"}),
    Call("POST", "agents/", {**_AGENT, "name": "y", "block_ids": [f"block-{_UNKNOWN}"]}),
    Call("POST", "agents/{agent}/messages", {"messages": []}),
    Call("POST", "agents/{agent}/messages", {"messages": "text"}),
    Call("POST", f"agents/agent-{_UNKNOWN}/messages", _said("nobody there")),
    Call("POST", f"agents/agent-{_UNKNOWN}/messages/stream", _said("nobody there")),
    Call("PATCH", f"agents/agent-{_UNKNOWN}", {"name": "nobody"}),
    Call("PATCH", f"agents/{{agent}}/tools/attach/tool-{_UNKNOWN}"),
    Call("PATCH", f"agents/{{agent}}/core-memory/blocks/attach/block-{_UNKNOWN}"),
    Call("PATCH", "agents/{agent}/core-memory/blocks/nothing", {"value": "x"}),
    Call("PATCH", "blocks/{notes}", {"value": "x" * 9000, "limit": 10}),
    Call("POST", "tools/", {"source_code": "this is no Python"}),
    Call("POST", "identities/", {"name": "without a key"}),
    Call("DELETE", f"agents/agent-{_UNKNOWN}"),
]

_DELETED = [
    Call("DELETE", "tools/{say}"),
    *_get("agents/{agent}", "tools/{say}"),
    Call("DELETE", "blocks/{human}"),
    *_get("agents/{agent}", "blocks/{human}"),
    Call("DELETE", "sources/{papers}"),
    *_get("agents/{agent}", "sources/{papers}"),
    Call("DELETE", "identities/{two}"),
    *_get("identities/{two}"),
    Call("DELETE", "agents/{agent}"),
    *_get("agents/{agent}", "agents/{agent}/messages", "agents/{agent}/tools"),
    *_get("conversations/{talk}", "messages/{message}", "runs/?agent_id={agent}", "agents/count"),
    *_get("agents/{other}", "agents/"),
]

CALLS: list[Call] = [*_ROWS, *_AGENTS, *_ARCHIVES, *_MESSAGES, *_ERRORS, *_DELETED]
