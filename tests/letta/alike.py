"""Plays recorded calls against a Letta server, and leaves out of its answers what no two servers share."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.letta.recorded_calls import Call
from tests.support.wait import eventually_sync

_ID = re.compile(r"\b[a-z_]+-[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_TIME = re.compile(
    r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?( ?[AP]M)?( ?UTC)?(Z|[+-]\d\d:?\d\d)?"
)
# A time inside the text of an error.
_PYTHON_TIME = re.compile(r"datetime\.datetime\([\d, ]+(, tzinfo=[\w.]+(\(UTC\))?)?\)")
_TRACE = re.compile(r"\b[0-9a-f]{32}\b")
_DURATION = re.compile(r"(_ns|_ms|_seconds|duration|created)$")
# Each encryption draws a nonce.
_DRAWN = {"value_enc"}
# Letta reads them in no order.
_UNORDERED = {"blocks", "identities", "secrets", "sources", "tags", "tools",
              "tool_exec_environment_variables", "identity_ids", "tool_rules", "functions_definitions"}  # fmt: skip


@dataclass(slots=True)
class Player:
    """
    One server, and what it has answered.

    Attributes:
        answers: for each call its text, the status, and the comparable body.
    """

    client: httpx.Client
    answers: list[tuple[str, int, Any]] = field(default_factory=list)
    _ids: dict[str, str] = field(default_factory=dict)

    def settle_in(self) -> None:
        """Make an organization and a user of its own, so that its lists hold nothing else."""
        # An answer 500 ends its connection.
        self.client.headers["connection"] = "close"
        organization = self._made("admin/orgs/", name="of the calls")
        user = self._made("admin/users/", name="who calls", organization_id=organization)
        self._ids |= {organization: "organization", user: "user"}
        self.client.headers["user_id"] = user
        self.client.post("/v1/tools/add-base-tools").raise_for_status()

    def _made(self, path: str, **body: Any) -> str:
        return str(self.client.post(f"/v1/{path}", json=body).raise_for_status().json()["id"])

    def play(self, call: Call) -> None:
        path = f"/v1/{self._filled(call.path)}"
        answer = self.client.request(call.method, path, json=self._filled(call.body))
        is_stream = answer.headers.get("content-type", "").startswith("text/event-stream")
        if is_stream:
            eventually_sync(lambda: self.client.get("/v1/runs/active").json() == [])
        body = _events(answer.text) if is_stream else _body(answer)
        for name, place in call.keep.items():
            self._ids[_at(body, place)] = name
        text = f"{call.method} {call.path}"
        what = call.path.partition("?")[0].rpartition("/")[2]
        self.answers.append((text, answer.status_code, self._comparable(body, what)))

    def _filled(self, given: Any) -> Any:
        """With the ids that this server has given."""
        if isinstance(given, dict):
            return {key: self._filled(value) for key, value in given.items()}
        if isinstance(given, list):
            return [self._filled(value) for value in given]
        if isinstance(given, str):
            for id_, name in self._ids.items():
                given = given.replace(f"{{{name}}}", id_)
        return given

    def _comparable(self, body: Any, name: str = "") -> Any:
        if isinstance(body, dict):
            return {key: self._comparable(value, key) for key, value in body.items()}
        if name in _DRAWN and body is not None:
            return "<drawn>"
        if isinstance(body, list):
            items = [self._comparable(value, name) for value in body]
            return sorted(items, key=json.dumps) if name in _UNORDERED else items
        if isinstance(body, str):
            for id_, known in self._ids.items():
                body = body.replace(id_, f"<{known}>")
            for pattern, left in ((_ID, "<id>"), (_UUID, "<uuid>"), (_TIME, "<time>"),
                                  (_PYTHON_TIME, "<time>"), (_TRACE, "<trace>")):  # fmt: skip
                body = pattern.sub(left, body)
        elif isinstance(body, (int, float)) and _DURATION.search(name):
            return "<number>"
        return body


def differences(one: Player, other: Player) -> list[str]:
    """A line for each call that the two have answered differently."""
    found = []
    for number, (a, b) in enumerate(zip(one.answers, other.answers, strict=True)):
        if a != b:
            found.append(f"{number}: {a[0]}: {a[1]} {b[1]}: {_where(a[2], b[2])}")
    return found


def _where(one: Any, other: Any, path: str = "") -> str:
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return next(_where(one[k], other[k], f"{path}.{k}") for k in one if one[k] != other[k])
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return next(
            _where(a, b, f"{path}.{n}")
            for n, (a, b) in enumerate(zip(one, other, strict=True))
            if a != b
        )
    return f"{path}: {str(one)[:300]} | {str(other)[:300]}"


def _body(answer: httpx.Response) -> Any:
    try:
        return answer.json()
    except ValueError:
        return answer.text


def _events(text: str) -> list[Any]:
    found = []
    for line in text.splitlines():
        data = line.removeprefix("data: ")
        if data != line:
            found.append(json.loads(data) if data.startswith("{") else data)
    return found


def _at(body: Any, place: str) -> str:
    for step in place.split("."):
        body = body[int(step)] if isinstance(body, list) else body.get(step)
    return str(body)
