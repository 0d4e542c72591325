"""
Runs two fake LLM providers in one process: `python -m tests.support.fake_provider`.

Speaks OpenAI's /v1/chat/completions, /v1/files and /v1/batches and Anthropic's
/v1/messages and /v1/messages/batches (below /anthropic), and misbehaves on
request. The last message of an item chooses its outcome:

    please fail      its own error, invalid_request
    please expire    not done when the batch ends
    please overload  a retryable error, the first time
    please garble    a line that is no JSON
    please vanish    no line at all, the first time
    please poison    the whole batch is refused, and no line is named

PUT /_/settings changes what every batch does (tests/support/fake_state.py). POST /_/faults
adds {"method", "path", "action", "times", ...} for the next requests whose path
begins so. `status` answers "status" (with "headers" and "body" or "text") and does nothing else;
`drop` does everything, then closes the connection without an answer; `lose`
closes it and does nothing. GET /_/report returns what was seen;
POST /_/reset clears everything.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support import fake_anthropic, fake_openai
from tests.support.fake_state import State, state
from worker.demo.serving import serve


class Faults:
    """Counts every call and injects the requested faults."""

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
            reply: Response = JSONResponse(body, fault["status"], headers=fault.get("headers"))
            if "text" in fault:
                reply = Response(fault["text"], fault["status"], media_type="text/html")
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
            Route(f"{v1}/chat/completions", fake_openai.chat, methods=["POST"]),
            Route(f"{v1}/files", fake_openai.upload, methods=["POST"]),
            Route(f"{v1}/files", fake_openai.list_files),
            Route(f"{v1}/files/{{id}}", fake_openai.delete_file, methods=["DELETE"]),
            Route(f"{v1}/files/{{id}}", fake_openai.retrieve_file),
            Route(f"{v1}/files/{{id}}/content", fake_openai.content),
            Route("/storage/{id}", fake_openai.stored),
            Route(f"{v1}/batches", fake_openai.create, methods=["POST"]),
            Route(f"{v1}/batches", fake_openai.list_batches),
            Route(f"{v1}/batches/{{id}}", fake_openai.retrieve),
            Route(f"{v1}/batches/{{id}}/cancel", fake_openai.cancel, methods=["POST"]),
            Route(claude, fake_anthropic.messages, methods=["POST"]),
            Route(f"{claude}/batches", fake_anthropic.create_messages, methods=["POST"]),
            Route(f"{claude}/batches", fake_anthropic.list_messages),
            Route(f"{claude}/batches/{{id}}", fake_anthropic.retrieve_messages),
            Route(
                f"{claude}/batches/{{id}}/cancel", fake_anthropic.cancel_messages, methods=["POST"]
            ),
            Route(f"{claude}/batches/{{id}}/results", fake_anthropic.message_results),
            Route("/_/settings", change_settings, methods=["PUT"]),
            Route("/_/faults", add_fault, methods=["POST"]),
            Route("/_/report", report),
            Route("/_/reset", reset, methods=["POST"]),
        ],
    )
    return Faults(app)


if __name__ == "__main__":
    serve(build_app())
