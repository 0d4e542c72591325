"""Describes the API as OpenAPI, from the types that decode its calls and encode its replies."""

from __future__ import annotations

from typing import Any, get_type_hints

import msgspec
from msgspec import UnsetType

from worker.web.api.actions import ACTIONS
from worker.web.api.performing import Action
from worker.web.api.queries import Query
from worker.web.api.routes import JSON, READS, Read
from worker.web.api.views import Done, Problem

_REF = "#/components/schemas/{name}"
_ERRORS = {
    "400": "A parameter is not valid; the message names it.",
    "401": "No token, or a wrong one.",
    "403": "The token may only read; or, without a token, the request names a foreign host.",
    "404": "Nothing has this id.",
    "409": "It cannot be done in the present state.",
    "429": "Too many wrong tokens came from this address; Retry-After says when to try again.",
    "503": "The queue's server cannot be reached, or is full.",
}
_ACTION_ERRORS = {
    "413": "The body is too long.",
    "415": "The body is not application/json.",
}


def describe(*, asks_for_token: bool) -> dict[str, Any]:
    """The description of this server, as /api/openapi.json serves it."""
    types: list[Any] = [Done, Problem, *(read.reply for read in READS)]
    types += [type_ for action in ACTIONS.values() for type_ in (action.target, action.reply)]
    types += [type_ for read in READS for _, type_, _ in _parameters(read.query)]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF)
    # The same type again has the same schema.
    known = {repr(type_): schema for type_, schema in zip(types, schemas, strict=True)}
    paths: dict[str, Any] = {
        f"/api/{read.path}": {"get": _read_operation(read, known)} for read in READS
    }
    for action in ACTIONS.values():
        operations = paths.setdefault(f"/api/{action.path}", {})
        operations["post"] = _action_operation(action, known)
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "letta-redis: jobs, webhooks and LLM batches",
            "version": "1",
            "description": "Every reply is JSON. Ids are parameters, as they may hold slashes.",
        },
        "paths": paths,
        "components": {"schemas": components},
    }
    if asks_for_token:
        scheme = {"type": "http", "scheme": "bearer"}
        document["components"]["securitySchemes"] = {"token": scheme}
        document["security"] = [{"token": []}]
    return document


def _read_operation(read: Read, known: dict[str, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "query", "required": required, "schema": known[repr(type_)]}
        for name, type_, required in _parameters(read.query)
    ]
    return {
        "operationId": f"read_{read.path.replace('/', '_')}",
        "summary": read.summary,
        "tags": [read.path.partition("/")[0]],
        "parameters": parameters,
        "responses": _responses(known[repr(read.reply)], known, _ERRORS),
    }


def _action_operation(action: Action, known: dict[str, Any]) -> dict[str, Any]:
    schema = known[repr(action.target)]
    return {
        "operationId": action.name.replace("/", "_"),
        "summary": action.summary,
        "tags": [action.name.partition("/")[0]],
        "requestBody": {"required": True, "content": {JSON: {"schema": schema}}},
        "responses": _responses(known[repr(action.reply)], known, {**_ERRORS, **_ACTION_ERRORS}),
    }


def _responses(reply: Any, known: dict[str, Any], errors: dict[str, str]) -> dict[str, Any]:
    problem = {JSON: {"schema": known[repr(Problem)]}}
    success = {"description": "Done.", "content": {JSON: {"schema": reply}}}
    found: dict[str, Any] = {"200": success}
    for status, text in errors.items():
        found[status] = {"description": text, "content": problem}
    return found


def _parameters(query: type[Query]) -> list[tuple[str, Any, bool]]:
    """Name, type and whether it is required, of each field."""
    hints = get_type_hints(query, include_extras=True)
    return [
        (each.name, _without_unset(hints[each.name]), each.required)
        for each in msgspec.structs.fields(query)
    ]


def _without_unset(type_: Any) -> Any:
    """The type that a parameter has where it is given."""
    parts = [part for part in getattr(type_, "__args__", ()) if part is not UnsetType]
    is_optional = UnsetType in getattr(type_, "__args__", ())
    return parts[0] if is_optional else type_
