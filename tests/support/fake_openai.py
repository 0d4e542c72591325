"""The fake provider's OpenAI: chat completions, files and batches."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response, StreamingResponse

from tests.support.fake_state import (
    CHUNK,
    POISON,
    fate,
    garbled,
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
    state.begun[id_] = time.monotonic()
    return JSONResponse(file_row(id_))


def is_unready(id_: str) -> bool:
    return time.monotonic() - state.begun.get(id_, 0) < state.settings.file_ready_s


def file_row(id_: str) -> dict[str, Any]:
    return {
        "id": id_,
        "object": "file",
        "bytes": len(state.files[id_]),
        "created_at": int(time.time()),
        "filename": state.names.get(id_, "results.jsonl"),
        "purpose": "batch" if id_ in state.names else "batch_output",
        "status": "pending"
        if is_unready(id_) and state.settings.unready == "status"
        else "processed",
    }


async def retrieve_file(request: Request) -> Response:
    id_ = request.path_params["id"]
    if id_ not in state.files:
        return openai_error(404, "not_found", "no such file")
    return JSONResponse(file_row(id_))


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
    id_ = request.path_params["id"]
    data = state.files.get(id_)
    if data is None or time.monotonic() - state.begun.get(id_, 0) < state.settings.results_late_s:
        return openai_error(404, "not_found", "no such file")
    if state.settings.storage:
        return RedirectResponse(f"{state.settings.storage}/{id_}?signature=a%2Fb", 302)
    return StreamingResponse(
        (data[at : at + CHUNK] for at in range(0, len(data), CHUNK)),
        media_type="application/octet-stream",
    )


async def stored(request: Request) -> Response:
    """The storage's own reply: its signature in the query is all that it accepts."""
    if request.headers.get("authorization") or request.query_params.get("signature") != "a/b":
        return Response("<Error><Code>InvalidArgument</Code></Error>", 400)
    return Response(state.files[request.path_params["id"]])


async def create(request: Request) -> Response:
    body = await request.json()
    data = state.files.get(body["input_file_id"])
    if data is None:
        return openai_error(400, "invalid_file", "no such input file")
    if is_unready(body["input_file_id"]):
        if state.settings.unready == "404":
            return JSONResponse({"detail": "Input file not found"}, 404)
        return openai_error(400, "invalidPayload", "the input file is still pending")
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
    if state.settings.no_room:
        state.settings = replace(state.settings, no_room=state.settings.no_room - 1)
        message = "Enqueued token limit reached"
        return {"code": "token_limit_exceeded", "line": None, "message": message, "param": None}
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
            line = openai_line(row, (200, chat_answer(row["body"])))
            good.append(garbled(line) if ends == "garble" else line)
    # Results come in no particular order; the last first shows who relies on one.
    for key, lines in (("output_file_id", good), ("error_file_id", bad)):
        if lines:
            batch[key] = f"file-{next(numbers)}"
            state.files[batch[key]] = "\n".join(reversed(lines)).encode() + b"\n"
            state.begun[batch[key]] = time.monotonic()
    if not bad and state.settings.empty_error_file:
        batch["error_file_id"] = ""
    counts = {"total": len(good) + len(bad), "completed": len(good), "failed": len(bad)}
    batch |= {"status": state.settings.spelling or outcome, "request_counts": counts}
    batch[f"{outcome}_at"] = int(time.time())


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
