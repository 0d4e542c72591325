"""
Two LLM providers in one process of their own: `python -m tests.support.fake_provider`.

Speaks OpenAI's /v1/chat/completions, /v1/files and /v1/batches and Anthropic's
/v1/messages and /v1/messages/batches (below /anthropic), and misbehaves when
told to. An item says what becomes of it by its last message:

    please fail      an error of its own, invalid_request
    please expire    not done when the batch ended
    please overload  an error that another attempt may mend, the first time it is seen
    please vanish    no line at all, the first time it is seen
    please poison    the whole batch is refused for it, and no line is named

PUT /_/settings changes what every batch does (see `Settings`). POST /_/faults
adds {"method", "path", "action", "times", ...} for the next requests whose path
begins so: `status` answers "status" (with "headers"), before anything is done;
`drop` does everything and closes the connection without an answer; `lose`
closes it before anything is done. GET /_/report tells what was seen;
POST /_/reset forgets everything.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.demo.serving import serve

_CHUNK = 65_536
_BODY = 300 * 1024 * 1024


@dataclass(frozen=True)
class Settings:
    """What every batch does until told otherwise."""

    outcome: str = "completed"  # | failed | expired | cancelled: of a whole OpenAI batch
    failed_code: str = "invalid_json_line"  # why, and that one names its line
    polls: int = 1  # looks that find a batch still in progress
    takes_s: float = 0.0  # an OpenAI batch is in progress for so long, whatever the looks
    not_found: int = 0  # looks at a new batch that answer 404
    empty_error_file: bool = False  # error_file_id is "" where there is none
    poison_at: str = "validation"  # | create | upload: when OpenAI refuses a poisoned file
    latency_s: float = 0.0  # of the synchronous endpoints
    list_limit: int = 100


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
    begun: dict[str, float] = field(default_factory=dict)  # OpenAI batch -> monotonic seconds
    looks: Counter[str] = field(default_factory=Counter)
    seen: Counter[str] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    most_at_once: int = 0
    at_once: int = 0


POISON = b"please poison"
state = State()
numbers = itertools.count(1)


def last_text(body: Mapping[str, Any]) -> str:
    content = body["messages"][-1].get("content", "")
    return content if isinstance(content, str) else content[-1]["text"]


def fate(body: Mapping[str, Any]) -> str:
    """fail, expire, overload, vanish or answer."""
    text = last_text(body)
    if "please poison" in text:
        return "poison"
    for word in ("fail", "expire", "overload", "vanish"):
        if f"please {word}" in text:
            state.seen[text] += 1
            once = word in {"overload", "vanish", "expire"} and "always" not in text
            return "answer" if once and state.seen[text] > 1 else word
    return "answer"


# -- OpenAI -------------------------------------------------------------------


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


async def work() -> None:
    state.times.append(time.time())
    state.at_once += 1
    state.most_at_once = max(state.most_at_once, state.at_once)
    try:
        await asyncio.sleep(state.settings.latency_s)
    finally:
        state.at_once -= 1


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
        (data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK)),
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


def is_hidden(id_: str) -> bool:
    state.looks[id_] += 1
    return state.looks[id_] <= state.settings.not_found


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
    for number, line in enumerate(state.files[batch["input_file_id"]].splitlines()):
        row = json.loads(line)
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


# -- Anthropic ----------------------------------------------------------------


def message_answer(body: Mapping[str, Any]) -> dict[str, Any]:
    words = len(last_text(body).split())
    return {
        "id": f"msg_{next(numbers)}",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": f"echo: {last_text(body)}"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": words,
            "output_tokens": words + 1,
            "cache_read_input_tokens": 1,
            "cache_creation_input_tokens": 0,
        },
    }


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
        "_results_url": f"{request.url}/{id_}/results",
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
    for number, row in enumerate(batch["_rows"]):
        result = message_result(row["params"], canceled=canceled and bool(number % 2))
        if result is not None:
            counts[result["type"]] += 1
            lines.append(json.dumps({"custom_id": row["custom_id"], "result": result}))
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
        (data[at : at + _CHUNK] for at in range(0, len(data), _CHUNK)),
        media_type="application/x-jsonl",
    )


# -- faults and reports -------------------------------------------------------


class Faults:
    """Counts every call, and lets the faults that were asked for happen."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.startswith("/_/"):
            await self._app(scope, receive, send)
            return
        state.calls[f"{scope['method']} {shape(path)}"] += 1
        fault = self._fault(scope["method"], path)
        if fault is None:
            await self._app(scope, receive, send)
        elif fault["action"] == "status":
            await drain(receive)
            error = {"type": "overloaded_error", "code": "busy", "message": "a fault"}
            body = fault.get("body", {"error": error})
            reply = JSONResponse(body, fault["status"], headers=fault.get("headers"))
            await reply(scope, receive, send)
        else:
            if fault["action"] == "drop":
                await self._app(scope, receive, ignore)
            else:
                await drain(receive)
            hang_up(send)

    @staticmethod
    def _fault(method: str, path: str) -> dict[str, Any] | None:
        for fault in state.faults:
            if fault["method"] == method and path.startswith(fault["path"]) and fault["times"] > 0:
                fault["times"] -= 1
                return fault
        return None


async def drain(receive: Receive) -> None:
    while (await receive()).get("more_body"):
        pass


async def ignore(_message: Message) -> None:
    return None


def hang_up(send: Send) -> None:
    # ASGI has no word for it: the send of uvicorn is a method of what holds the connection.
    send.__self__.transport.abort()  # type: ignore[attr-defined]


def shape(path: str) -> str:
    parts = path.split("/")
    return "/".join("{id}" if "_" in part or "-" in part else part for part in parts)


async def change_settings(request: Request) -> Response:
    state.settings = replace(state.settings, **(await request.json()))
    return JSONResponse(asdict(state.settings))


async def add_fault(request: Request) -> Response:
    state.faults.append({"times": 1, **(await request.json())})
    return JSONResponse(state.faults)


async def reset(_request: Request) -> Response:
    vars(state).update(vars(State()))
    return JSONResponse({})


async def report(_request: Request) -> Response:
    return JSONResponse(
        {
            "calls": state.calls,
            "batches": state.items,
            "files": {id_: state.names.get(id_, "") for id_ in state.files},
            "status": {
                **{id_: row["status"] for id_, row in state.batches.items()},
                **{id_: row["processing_status"] for id_, row in state.messages.items()},
            },
            "times": state.times,
            "most_at_once": state.most_at_once,
        }
    )


def build_app() -> ASGIApp:
    v1, claude = "/v1", "/anthropic/v1/messages"
    app = Starlette(
        routes=[
            Route(f"{v1}/chat/completions", chat, methods=["POST"]),
            Route(f"{v1}/files", upload, methods=["POST"]),
            Route(f"{v1}/files", list_files),
            Route(f"{v1}/files/{{id}}", delete_file, methods=["DELETE"]),
            Route(f"{v1}/files/{{id}}/content", content),
            Route(f"{v1}/batches", create, methods=["POST"]),
            Route(f"{v1}/batches", list_batches),
            Route(f"{v1}/batches/{{id}}", retrieve),
            Route(f"{v1}/batches/{{id}}/cancel", cancel, methods=["POST"]),
            Route(claude, messages, methods=["POST"]),
            Route(f"{claude}/batches", create_messages, methods=["POST"]),
            Route(f"{claude}/batches", list_messages),
            Route(f"{claude}/batches/{{id}}", retrieve_messages),
            Route(f"{claude}/batches/{{id}}/cancel", cancel_messages, methods=["POST"]),
            Route(f"{claude}/batches/{{id}}/results", message_results),
            Route("/_/settings", change_settings, methods=["PUT"]),
            Route("/_/faults", add_fault, methods=["POST"]),
            Route("/_/report", report),
            Route("/_/reset", reset, methods=["POST"]),
        ],
    )
    return Faults(app)


if __name__ == "__main__":
    serve(build_app())
