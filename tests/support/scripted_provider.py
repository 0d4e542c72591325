"""A provider inside the test's process, for model tests: it follows a script and counts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import Any

from worker.llm.answers import CANCELED, Answer
from worker.llm.grouping import Group
from worker.llm.providers import Lines, RemoteBatch, Unclear
from worker.llm.states import LookupResult

POISON = "poison"
USAGE = {
    "prompt_tokens": 7,
    "completion_tokens": 5,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
# What may become of a line; `missing` has none.
RESULTS = {
    "ok": None,
    "invalid": Answer(kind="invalid_prompt", message="no"),
    "expired": Answer(kind="batch_expired", message="late", retryable=True),
    "canceled": CANCELED,
}


@dataclass
class Remote:
    batch_id: str
    rows: list[tuple[str, str]]  # custom id, text
    status: str = "in_progress"
    results: dict[str, str] = field(default_factory=dict)  # custom id -> result
    bad_lines: dict[int, str] = field(default_factory=dict)


class ScriptedProvider:
    """`fault` of the next submission: "", drop (accepted, no answer) or lose (not accepted)."""

    uploads = True

    def __init__(self) -> None:
        self.fault = ""
        self.files: dict[str, list[tuple[str, str]]] = {}
        self.remotes: dict[str, Remote] = {}
        self.taken: Counter[str] = Counter()  # our batch id -> submissions that were taken
        self.canceled: list[str] = []  # ours
        self.deleted: set[str] = set()

    async def complete(self, group: Group, body: bytes) -> Answer:  # noqa: ARG002
        text = text_of(json.loads(body))
        if text == POISON:
            return RESULTS["invalid"] or Answer()
        return Answer(body=answer_to(text))

    async def upload(self, lines: Lines) -> str:
        file_id = f"file-{len(self.files)}"
        rows = []
        async for page in lines.pages(
            lambda id_, body: json.dumps([id_, body.decode()]).encode() + b"\n"
        ):
            rows += [json.loads(line) for line in page.splitlines()]
        self.files[file_id] = [(id_, text_of(json.loads(body))) for id_, body in rows]
        return file_id

    async def submit(
        self,
        group: Group,  # noqa: ARG002
        lines: Lines,
        *,
        file_id: str,
    ) -> RemoteBatch:
        fault, self.fault = self.fault, ""
        if fault == "lose":
            raise Unclear("lost on the way")
        remote_id = f"batch-{len(self.remotes)}"
        self.remotes[remote_id] = Remote(lines.batch_id, self.files[file_id])
        self.taken[lines.batch_id] += 1
        if fault == "drop":
            raise Unclear("the answer was lost")
        return self._view(remote_id)

    async def find(
        self,
        batch_id: str,
        *,
        since_ms: int,  # noqa: ARG002
        count: int,  # noqa: ARG002
        taken: Collection[str],  # noqa: ARG002
    ) -> LookupResult:
        found = [id_ for id_, remote in self.remotes.items() if remote.batch_id == batch_id]
        return LookupResult(found[0]) if found else LookupResult()

    async def read(self, provider_id: str) -> RemoteBatch:
        return self._view(provider_id)

    async def cancel(self, provider_id: str) -> RemoteBatch:
        remote = self.remotes[provider_id]
        self.canceled.append(remote.batch_id)
        if remote.status == "in_progress":
            # Half of it was done already.
            done = {id_: text for number, (id_, text) in enumerate(remote.rows) if number % 2 == 0}
            remote.results = {id_: "canceled" for id_, _ in remote.rows}
            remote.results |= {id_: "invalid" if t == POISON else "ok" for id_, t in done.items()}
            remote.status = "cancelled"
        return self._view(provider_id)

    def end(self, provider_id: str, outcome: str, results: list[str]) -> None:
        """End a batch in progress. Its lines get the results in turn."""
        remote = self.remotes[provider_id]
        texts = [text for _, text in remote.rows]
        if POISON in texts:
            remote.status = "failed"
            if outcome == "named":
                remote.bad_lines = {n: "bad" for n, text in enumerate(texts, 1) if text == POISON}
            return
        remote.status = "completed"
        for number, (id_, _) in enumerate(remote.rows):
            remote.results[id_] = results[number % len(results)]

    async def results(self, remote: RemoteBatch) -> AsyncIterator[tuple[str, Answer]]:
        kept = self.remotes[remote.id]
        for id_, text in reversed(kept.rows):
            result = kept.results.get(id_, "missing")
            if result != "missing":
                yield id_, RESULTS[result] or Answer(body=answer_to(text))

    async def delete_files(
        self,
        batch_id: str,  # noqa: ARG002
        file_ids: Collection[str],
        *,
        since_ms: int | None,  # noqa: ARG002
    ) -> int:
        self.deleted |= set(file_ids)
        return len(file_ids)

    def _view(self, remote_id: str) -> RemoteBatch:
        remote = self.remotes[remote_id]
        return RemoteBatch(
            id=remote_id,
            status=remote.status,
            ended=remote.status != "in_progress",
            files=("results",) if remote.results else (),
            failed=remote.status == "failed",
            error="refused" if remote.status == "failed" else "",
            bad_lines=remote.bad_lines,
        )


def text_of(body: dict[str, Any]) -> str:
    return str(body["messages"][0]["content"])


def answer_to(text: str) -> dict[str, Any]:
    return {"echo": text, "usage": USAGE, "choices": [{"message": {"content": text}}]}
