"""The fake provider's OpenAI: chat completions, files and batches."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from tests.support.fake_state import (
    CHUNK,
    POISON,
    fate,
    is_hidden,
    last_text,
    numbers,
    state,
    with_intruder,
    work,
)

_BODY = 300 * 1024 * 1024


def chat_answer(body: Mapping[str, Any]) -> dict[str, Any]:
    words = len(last_text(body).split())
    return {
        "id": f"chatcmpl-{next(numbers)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": f"echo: {last_text(body)}"},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": words,
            "completion_tokens": words + 1,
            "total_tokens": 2 * words + 1,
            "prompt_tokens_details": {"cached_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 1},
        },
    }


def openai_error(status: int, code: str, message: str) -> Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status)


async def chat(request: Request) -> Response:
    body = await request.json()
    await work()
    doom = fate(body)
    if doom in {"fail", "poison"}:
        return openai_error(400, "invalid_prompt", "asked to fail")
    if doom == "overload":
        return openai_error(503, "overloaded", "asked to be busy")
    return JSONResponse(chat_answer(body))


async def upload(request: Request) -> Response:
    async with request.form(max_part_size=_BODY) as form:
        part = form["file"]
        if isinstance(part, str) or form["purpose"] != "batch":
            return openai_error(400, "invalid_file", "a file and its purpose are needed")
        data = await part.read()
        name = part.filename or "file"
    if state.settings.poison_at == "upload" and POISON in data:
        return openai_error(400, "invalid_file_format", "a line is not to our taste")
    id_ = f"file-{next(numbers)}"
    state.files[id_], state.names[id_] = data, name
    return JSONResponse(file_row(id_))


def file_row(id_: str) -> dict[str, Any]:
    return {
        "id": id_,
        "object": "file",
        "bytes": len(state.files[id_]),
        "created_at": int(time.time()),
        "filename": state.names.get(id_, "results.jsonl"),
        "purpose": "batch" if id_ in state.names else "batch_output",
        "status": "processed",
    }


async def list_files(request: Request) -> Response:
    purpose = request.query_params.get("purpose")
    rows = [row for id_ in [*state.files][::-1] if (row := file_row(id_))["purpose"] == purpose]
    after = request.query_params.get("after")
    if after:
        rows = rows[[row["id"] for row in rows].index(after) + 1 :]
    page = rows[: state.settings.list_limit]
    return JSONResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(rows) > len(page),
        }
    )


async def delete_file(request: Request) -> Response:
    id_ = request.path_params["id"]
    if state.files.pop(id_, None) is None:
        return openai_error(404, "not_found", "no such file")
    return JSONResponse({"id": id_, "object": "file", "deleted": True})


async def content(request: Request) -> Response:
    data = state.files.get(request.path_params["id"])
    if data is None:
        return openai_error(404, "not_found", "no such file")
    return StreamingResponse(
        (data[at : at + CHUNK] for at in range(0, len(data), CHUNK)),
        media_type="application/octet-stream",
    )


async def create(request: Request) -> Response:
    body = await request.json()
    data = state.files.get(body["input_file_id"])
    if data is None:
        return openai_error(400, "invalid_file", "no such input file")
    if state.settings.poison_at == "create" and POISON in data:
        return openai_error(400, "invalid_request", "a line is not to our taste")
    rows = [json.loads(line) for line in data.splitlines() if line]
    id_ = f"batch_{next(numbers)}"
    state.items[id_] = [row["custom_id"] for row in rows]
    state.begun[id_] = time.monotonic()
    state.batches[id_] = {
        "id": id_,
        "object": "batch",
        "endpoint": body["endpoint"],
        "errors": None,
        "input_file_id": body["input_file_id"],
        "completion_window": body["completion_window"],
        "status": "validating",
        "output_file_id": None,
        "error_file_id": None,
        "created_at": int(time.time()),
        "metadata": body.get("metadata"),
        "request_counts": {"total": len(rows), "completed": 0, "failed": 0},
    }
    return JSONResponse(state.batches[id_])


async def retrieve(request: Request) -> Response:
    batch = state.batches.get(request.path_params["id"])
    if batch is None or is_hidden(batch["id"]):
        return openai_error(404, "not_found", "no such batch")
    if batch["status"] in {"validating", "in_progress"}:
        batch["status"] = "in_progress"
        enough = state.looks[batch["id"]] > state.settings.polls + state.settings.not_found
        if enough and time.monotonic() - state.begun[batch["id"]] >= state.settings.takes_s:
            finish(batch, state.settings.outcome)
    elif batch["status"] == "cancelling":
        finish(batch, "cancelled")
    return JSONResponse(batch)


async def cancel(request: Request) -> Response:
    batch = state.batches[request.path_params["id"]]
    if batch["status"] in {"completed", "failed", "expired", "cancelled"}:
        return openai_error(400, "invalid_state", f"the batch is {batch['status']}")
    batch["status"] = "cancelling"
    return JSONResponse(batch)


async def list_batches(request: Request) -> Response:
    limit = min(int(request.query_params.get("limit", 20)), state.settings.list_limit)
    rows = list(state.batches.values())[::-1]
    after = request.query_params.get("after")
    if after:
        rows = rows[[row["id"] for row in rows].index(after) + 1 :]
    page = rows[:limit]
    return JSONResponse(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(rows) > limit,
        }
    )


def whole_error(batch: Mapping[str, Any], outcome: str) -> dict[str, Any] | None:
    """What is wrong with the file as a whole."""
    if outcome == "failed":
        code = state.settings.failed_code
        line = 1 if code == "invalid_json_line" else None
        return {"code": code, "line": line, "message": "line 1 is not JSON", "param": None}
    if POISON in state.files[batch["input_file_id"]]:
        return {"code": "invalid_request", "line": None, "message": "it is bad", "param": None}
    return None


def finish(batch: dict[str, Any], outcome: str) -> None:
    wrong = whole_error(batch, outcome)
    if wrong is not None:
        batch |= {"status": "failed", "errors": {"object": "list", "data": [wrong]}}
        return
    good: list[str] = []
    bad: list[str] = []
    rows = [json.loads(line) for line in state.files[batch["input_file_id"]].splitlines()]
    for number, row in enumerate(with_intruder(rows)):
        ends = fate(row["body"])
        if ends == "vanish":
            continue
        if ends == "expire" or (outcome in {"expired", "cancelled"} and number % 2):
            bad.append(openai_line(row, None, error=f"batch_{outcome_of(outcome)}"))
        elif ends == "fail":
            error = {"message": "asked to fail", "type": "x", "code": "invalid_prompt"}
            bad.append(openai_line(row, (400, {"error": error})))
        elif ends == "overload":
            error = {"message": "busy", "type": "server_error", "code": "server_error"}
            bad.append(openai_line(row, (503, {"error": error})))
        else:
            good.append(openai_line(row, (200, chat_answer(row["body"]))))
    # Results come in no particular order; the last first shows who relies on one.
    for key, lines in (("output_file_id", good), ("error_file_id", bad)):
        if lines:
            batch[key] = f"file-{next(numbers)}"
            state.files[batch[key]] = "\n".join(reversed(lines)).encode() + b"\n"
    if not bad and state.settings.empty_error_file:
        batch["error_file_id"] = ""
    counts = {"total": len(good) + len(bad), "completed": len(good), "failed": len(bad)}
    batch |= {"status": outcome, "request_counts": counts}


def outcome_of(outcome: str) -> str:
    return outcome if outcome != "completed" else "expired"


def openai_line(
    row: Mapping[str, Any], reply: tuple[int, Any] | None, error: str | None = None
) -> str:
    response = reply and {"status_code": reply[0], "request_id": "r", "body": reply[1]}
    return json.dumps(
        {
            "id": f"batch_req_{next(numbers)}",
            "custom_id": row["custom_id"],
            "response": response,
            "error": error and {"code": error, "message": "not done in time"},
        }
    )
