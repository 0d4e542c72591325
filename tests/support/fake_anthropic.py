"""The fake provider's Anthropic: messages and message batches."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.support.fake_state import (
    CHUNK,
    fate,
    garbled,
    is_hidden,
    last_text,
    numbers,
    state,
    with_intruder,
    work,
)


def message_answer(body: Mapping[str, Any]) -> dict[str, Any]:
    words = len(last_text(body).split())
    return {
        "id": f"msg_{next(numbers)}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        **_said(body),
        "stop_sequence": None,
        "usage": {
            "input_tokens": words,
            "output_tokens": words + 1,
            "cache_read_input_tokens": 1,
            "cache_creation_input_tokens": 0,
        },
    }


def _said(body: Mapping[str, Any]) -> dict[str, Any]:
    """An echo, or "please use NAME": a call of that tool with a text for each argument."""
    asked = re.search(r"please use (\w+)", last_text(body))
    tool = next((t for t in body.get("tools", ()) if asked and t["name"] == asked[1]), None)
    if tool is None:
        said = [{"type": "text", "text": f"echo: {last_text(body)}"}]
        return {"content": said, "stop_reason": "end_turn"}
    given = dict.fromkeys(tool["input_schema"].get("required", ()), "human")
    call = {
        "type": "tool_use",
        "id": f"toolu_{next(numbers)}",
        "name": tool["name"],
        "input": given,
    }
    return {"content": [call], "stop_reason": "tool_use"}


def anthropic_error(status: int, kind: str, message: str) -> Response:
    error = {"type": kind, "message": message}
    return JSONResponse({"type": "error", "error": error, "request_id": "req_1"}, status)


async def messages(request: Request) -> Response:
    body = await request.json()
    await work()
    doom = fate(body)
    if doom in {"fail", "poison"} or not request.headers.get("anthropic-version"):
        return anthropic_error(400, "invalid_request_error", "asked to fail")
    if doom == "overload":
        return anthropic_error(529, "overloaded_error", "asked to be busy")
    return JSONResponse(message_answer(body))


async def create_messages(request: Request) -> Response:
    rows = (await request.json())["requests"]
    ids = [row["custom_id"] for row in rows]
    if len(set(ids)) < len(ids) or any(len(id_) > 64 for id_ in ids):
        return anthropic_error(400, "invalid_request_error", "custom_id: unique, 64 at most")
    if any("please poison" in last_text(row["params"]) for row in rows):
        return anthropic_error(400, "invalid_request_error", "a request is not to our taste")
    id_ = f"msgbatch_{next(numbers)}"
    now = datetime.now(UTC)
    state.items[id_] = ids
    counts = dict.fromkeys(("succeeded", "errored", "canceled", "expired"), 0)
    state.messages[id_] = {
        "id": id_,
        "type": "message_batch",
        "processing_status": "in_progress",
        "request_counts": {"processing": len(rows), **counts},
        "created_at": now.isoformat(),
        "expires_at": (now + timedelta(hours=24)).isoformat(),
        "ended_at": None,
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": None,
        "_rows": rows,
        "_results_url": f"{request.url.replace(query='')}/{id_}/results",
    }
    return message_batch(state.messages[id_])


def message_batch(batch: Mapping[str, Any]) -> Response:
    return JSONResponse({key: value for key, value in batch.items() if key[0] != "_"})


async def retrieve_messages(request: Request) -> Response:
    batch = state.messages.get(request.path_params["id"])
    if batch is None or is_hidden(batch["id"]):
        return anthropic_error(404, "not_found_error", "no such batch")
    enough = state.looks[batch["id"]] > state.settings.polls + state.settings.not_found
    if batch["processing_status"] == "canceling" or (
        batch["processing_status"] == "in_progress" and enough
    ):
        finish_messages(batch)
    return message_batch(batch)


async def cancel_messages(request: Request) -> Response:
    batch = state.messages[request.path_params["id"]]
    if batch["processing_status"] == "in_progress":
        now = datetime.now(UTC).isoformat()
        batch |= {"processing_status": "canceling", "cancel_initiated_at": now}
    return message_batch(batch)


async def list_messages(request: Request) -> Response:
    limit = min(int(request.query_params.get("limit", 20)), state.settings.list_limit)
    rows = list(state.messages.values())[::-1]
    after = request.query_params.get("after_id")
    if after:
        rows = rows[[row["id"] for row in rows].index(after) + 1 :]
    page = [{k: v for k, v in row.items() if k[0] != "_"} for row in rows[:limit]]
    return JSONResponse(
        {
            "data": page,
            "has_more": len(rows) > limit,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
        }
    )


def finish_messages(batch: dict[str, Any]) -> None:
    canceled = batch["processing_status"] == "canceling"
    counts: Counter[str] = Counter()
    lines = []
    for number, row in enumerate(with_intruder(batch["_rows"])):
        result = message_result(row["params"], canceled=canceled and bool(number % 2))
        if result is not None:
            counts[result["type"]] += 1
            line = json.dumps({"custom_id": row["custom_id"], "result": result})
            lines.append(garbled(line) if fate(row["params"]) == "garble" else line)
    batch["_results"] = "\n".join(reversed(lines)).encode() + b"\n"
    batch |= {
        "processing_status": "ended",
        "ended_at": datetime.now(UTC).isoformat(),
        "results_url": batch["_results_url"],
        "request_counts": {
            "processing": 0,
            **{kind: counts[kind] for kind in ("succeeded", "errored", "canceled", "expired")},
        },
    }


def message_result(params: Mapping[str, Any], *, canceled: bool) -> dict[str, Any] | None:
    ends = "cancel" if canceled else fate(params)
    kinds = {"fail": "invalid_request_error", "overload": "overloaded_error"}
    if ends == "vanish":
        return None
    if ends in kinds:
        error = {"type": kinds[ends], "message": f"asked to {ends}"}
        return {
            "type": "errored",
            "error": {"type": "error", "error": error, "request_id": "r"},
        }
    if ends in {"cancel", "expire"}:
        return {"type": "canceled" if ends == "cancel" else "expired"}
    return {"type": "succeeded", "message": message_answer(params)}


async def message_results(request: Request) -> Response:
    batch = state.messages.get(request.path_params["id"])
    if batch is None or "_results" not in batch:
        return anthropic_error(404, "not_found_error", "no results")
    data: bytes = batch["_results"]
    return StreamingResponse(
        (data[at : at + CHUNK] for at in range(0, len(data), CHUNK)),
        media_type="application/x-jsonl",
    )
