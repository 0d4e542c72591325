"""
Caches the JSON schemas of Letta's own tools, which Letta generates on each read.

Letta generates a schema from the name, docstring, signature and code of a function
in one of its modules. While these are the same objects, the schema is the same.
"""

from __future__ import annotations

import marshal
import sys
from functools import wraps
from typing import Any

from letta_redis.plugin.runtime import Runtime
from letta_redis.plugin.seams import Feature, Seam

# Far more than the server has tools.
_MOST = 1024


def _remembering(_runtime: Runtime, original: Any) -> Any:
    known: dict[tuple[str, str], tuple[tuple[Any, ...], bytes]] = {}

    @wraps(original)
    def get_json_schema_from_module(module_name: str, function_name: str) -> Any:
        source = _source(module_name, function_name)
        key = (module_name, function_name)
        found = known.get(key)
        if found is not None and source is not None and _are_same(found[0], source):
            return marshal.loads(found[1])  # noqa: S302  (made in this process)
        schema = original(module_name, function_name)
        if source is not None and len(known) < _MOST:
            encoded = _encoded(schema)
            if encoded is not None:
                known[key] = (source, encoded)
        return schema

    return get_json_schema_from_module


def _source(module_name: str, function_name: str) -> tuple[Any, ...] | None:
    """The objects that a schema is generated from, or None if there is no such function."""
    function: Any = getattr(sys.modules.get(module_name), function_name, None)
    try:
        parts = (
            function.__code__,
            function.__doc__,
            function.__defaults__,
            function.__kwdefaults__,
        )
        annotations = tuple(function.__annotations__.items())
    except AttributeError:
        return None
    signature = function.__dict__.get("__signature__")
    return (function, *parts, signature, *(part for item in annotations for part in item))


def _are_same(one: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(one) == len(other) and all(map(_is, one, other))


def _is(one: Any, other: Any) -> bool:
    return one is other


def _encoded(schema: Any) -> bytes | None:
    """
    Encode a schema, or return None if it would not decode to the same value.

    JSON would decode the tuple of a Literal's values as a list.
    """
    try:
        encoded = marshal.dumps(schema)
    except ValueError:
        return None
    decoded = marshal.loads(encoded)  # noqa: S302
    return encoded if repr(decoded) == repr(schema) else None


FEATURE = Feature(
    "schemas",
    "cache",
    (
        Seam(
            "letta.schemas.tool:get_json_schema_from_module",
            "caches the schemas of Letta's own tools",
            "(module_name, function_name)",
            digests=("02b6a4a39b58be30",),
            replace=_remembering,
        ),
    ),
)
