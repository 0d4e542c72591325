"""State of both fake providers: their configured behavior, and the requests they have seen."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CHUNK = 65_536


@dataclass(frozen=True)
class Settings:
    """Behavior of every batch, until changed."""

    outcome: str = "completed"  # | failed | expired | cancelled: of a whole OpenAI batch
    failed_code: str = "invalid_json_line"  # why, and that one names its line
    polls: int = 1  # looks that find a batch still in progress
    takes_s: float = 0.0  # an OpenAI batch is in progress for so long, whatever the looks
    not_found: int = 0  # looks at a new batch that answer 404
    file_ready_s: float = 0.0  # an uploaded file cannot be used for so long
    unready: str = "status"  # how that shows: in its status | as 400 | as 404
    no_room: int = 0  # submissions for whose tokens there is no room
    storage: str = ""  # base URL of a storage that file contents are redirected to
    results_late_s: float = 0.0  # the results of an ended OpenAI batch are not found for so long
    spelling: str = ""  # the word for the end of an OpenAI batch, if it is another
    empty_error_file: bool = False  # error_file_id is "" where there is none
    poison_at: str = "validation"  # | create | upload: when OpenAI refuses a poisoned file
    latency_s: float = 0.0  # of the synchronous endpoints
    list_limit: int = 100
    also_answers: str = ""  # a request id: every batch has a line for it, whether it held it or not


@dataclass
class State:
    settings: Settings = field(default_factory=Settings)
    faults: list[dict[str, Any]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    files: dict[str, bytes] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)  # OpenAI's
    messages: dict[str, dict[str, Any]] = field(default_factory=dict)  # Anthropic's
    items: dict[str, list[str]] = field(default_factory=dict)  # batch -> custom ids
    begun: dict[str, float] = field(default_factory=dict)  # OpenAI batch, file -> monotonic seconds
    looks: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0


def garbled(line: str) -> str:
    """The line as a server writes it that formats numbers by its C library."""
    return line[:-1] + ', "score": -nan}'


POISON = b"please poison"
state = State()
numbers = itertools.count(1)


def with_intruder(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the lines of a batch, and one for the request that `also_answers` names."""
    id_ = state.settings.also_answers
    if not id_ or not rows:
        return rows
    batch_id = rows[0]["custom_id"].rpartition("-")[2]
    return [*rows, {**rows[0], "custom_id": f"{id_}-{batch_id}"}]


def last_text(body: Mapping[str, Any]) -> str:
    content = body["messages"][-1].get("content", "")
    return content if isinstance(content, str) else content[-1].get("text", "")


def fate(body: Mapping[str, Any]) -> str:
    """Return fail, expire, overload, vanish, garble, poison or answer, by the last message."""
    text = last_text(body)
    for word in ("poison", "garble"):
        if f"please {word}" in text:
            return word
    for word in ("fail", "expire", "overload", "vanish"):
        if f"please {word}" in text:
            state.seen[text] += 1
            once = word in {"overload", "vanish", "expire"} and "always" not in text
            return "answer" if once and state.seen[text] > 1 else word
    return "answer"


async def work() -> None:
    state.times.append(time.time())
    state.at_once += 1
    state.most_at_once = max(state.most_at_once, state.at_once)
    try:
        await asyncio.sleep(state.settings.latency_s)
    finally:
        state.at_once -= 1


def is_hidden(id_: str) -> bool:
    state.looks[id_] += 1
    return state.looks[id_] <= state.settings.not_found
