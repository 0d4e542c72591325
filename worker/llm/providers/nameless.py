"""
Finds what names no request in results that are no rows. Pure.

Garbage may be a hundred thousand objects of two bytes. Read one by one, they take seconds of CPU.
"""

from __future__ import annotations

import re

from worker.llm.json_text import UnreadableJSON, decode, is_blank

# An object without escapes, whose arrays and objects hold no others.
_FLAT = rb'[^][{}"\\]*(?:"[^"\\]*"[^][{}"\\]*)*'
_OBJECT = re.compile(rb"\{" + _FLAT + rb"(?:[\[{]" + _FLAT + rb"[\]}]" + _FLAT + rb")*\}")
_OBJECTS = re.compile(rb"(?:[^{]*" + _OBJECT.pattern + rb")+")
# How a row begins to name a request.
_NAMES = (b"custom_id", b"req_")


def end_of_nameless(text: bytes, begin: int, stop: int) -> int:
    """Where the simple objects end that follow each other from `begin` on and name no request."""
    for name in _NAMES:
        found = text.find(name, begin, stop)
        stop = found if found >= 0 else stop
    objects = _OBJECTS.match(text, begin, stop)
    return objects.end() if objects else begin


def is_empty_of_answers(text: bytes) -> bool:
    """Whether simple objects, and what stands between them, are JSON: then no answer is lost."""
    if not is_blank(_OBJECT.sub(b"", text)):
        return False
    try:
        decode(b"[" + b",".join(_OBJECT.findall(text)) + b"]")
    except UnreadableJSON:
        return False
    return True
