"""Exceptions and values that break whoever describes, encodes or logs them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from arq.worker import JobExecutionFailed, Retry, RetryJob

from worker.errors import Permanent, Transient

# A file name that is not UTF-8, as Python reads it.
SURROGATE = os.fsdecode(b"caf\xe9.txt")


class Odd(Exception):
    """Raises `what` when it is shown, represented or pickled."""

    def __init__(self, what: BaseException) -> None:
        super().__init__("odd")
        self.what = what

    def __str__(self) -> str:
        raise self.what

    def __repr__(self) -> str:
        raise self.what

    def __reduce__(self) -> Any:
        raise self.what


class _Text(str):
    """A text whose own methods raise."""

    __slots__ = ()

    def __bool__(self) -> bool:
        raise RuntimeError("no truth")

    def __format__(self, spec: str) -> str:
        raise RuntimeError("no format")

    def __getitem__(self, key: Any) -> str:
        raise RuntimeError("no item")

    def encode(self, *_args: Any) -> bytes:
        raise SystemExit("no bytes")


class TextOfItsOwn(Exception):
    def __str__(self) -> str:
        return _Text("text of its own")


class NotText(Exception):
    def __str__(self) -> str:
        return 1  # type: ignore[return-value]  # noqa: PLE0307


class _Nameless(type):
    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise SystemExit("no name")


class NoName(Exception, metaclass=_Nameless):
    pass


class NoClass(Exception):
    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise SystemExit("no class")


class NoTruth(Exception):
    """Raises when it is asked whether it is true, how long it is, or what it equals."""

    def __bool__(self) -> bool:
        raise SystemExit("no truth")

    __len__ = __hash__ = __eq__ = __bool__  # type: ignore[assignment]


class NoAttributes(Exception):
    def __getattribute__(self, name: str) -> Any:
        raise SystemExit("no attributes")

    def __setattr__(self, name: str, value: Any) -> None:
        raise KeyboardInterrupt


def _with_notes(notes: Any) -> Exception:
    exc = ValueError("no")
    exc.__notes__ = notes
    return exc


class BareRetry(Retry):
    """A Retry without the attribute that its base's `__init__` sets."""

    def __init__(self) -> None:
        Exception.__init__(self)


class Plainly(BaseException):
    """Neither an Exception nor one of Python's own."""


def _odd_retry(delay: Any) -> Retry:
    retry = Retry()
    retry.defer_score = delay
    return retry


def _chain(length: int) -> Exception:
    last = ValueError("the first")
    for number in range(length):
        following = RuntimeError(number)
        following.__cause__ = last
        last = following  # type: ignore[assignment]
    return last


def _group(depth: int) -> Exception:
    inner: Exception = ValueError("inside")
    for _ in range(depth):
        inner = ExceptionGroup(SURROGATE, [inner])
    return inner


def _loop() -> Exception:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


# By name, so that a failing example is readable. Each call makes a new exception.
RAISED: dict[str, Callable[[], BaseException]] = {
    "plain": lambda: ValueError("no"),
    "without text": ValueError,
    "surrogate": lambda: RuntimeError(f"cannot read {SURROGATE}"),
    "nul and control": lambda: RuntimeError("a\0b\x1b[2Jc\r\n"),
    "long": lambda: RuntimeError("x" * 3_000_000),
    "odd arguments": lambda: RuntimeError(object(), {1: {2}}, b"\xff"),
    "__str__ raises": lambda: Odd(ValueError("again")),
    "__str__ raises itself": lambda: Odd(RecursionError()),
    "__str__ exits": lambda: Odd(SystemExit(3)),
    "__str__ interrupts": lambda: Odd(KeyboardInterrupt()),
    "__str__ is canceled": lambda: Odd(asyncio.CancelledError()),
    "text of its own": TextOfItsOwn,
    "not text": NotText,
    "no name": NoName,
    "no class": NoClass,
    "no truth": NoTruth,
    "no attributes": NoAttributes,
    "notes that are none": lambda: _with_notes(5),
    "notes that raise": lambda: _with_notes([Odd(SystemExit(3)), SURROGATE]),
    "group": lambda: ExceptionGroup("several", [ValueError("a"), OSError(SURROGATE)]),
    "base group": lambda: BaseExceptionGroup("several", [SystemExit(1), ValueError("a")]),
    "deep group": lambda: _group(3000),
    "long chain": lambda: _chain(3000),
    "causes in a circle": _loop,
    "unicode error": lambda: UnicodeDecodeError("utf-8", b"\xff" * 99, 0, 1, "bad"),
    "os error": lambda: FileNotFoundError(2, "No such file", SURROGATE),
    "key error": lambda: KeyError(SURROGATE),
    "memory": MemoryError,
    "recursion": RecursionError,
    "assertion": lambda: AssertionError(SURROGATE),
    "stop": StopAsyncIteration,
    "timeout": TimeoutError,
    "exit": lambda: SystemExit(1),
    "exit with text": lambda: SystemExit(SURROGATE),
    "interrupt": KeyboardInterrupt,
    "generator exit": GeneratorExit,
    "base": lambda: Plainly(SURROGATE),
    "permanent": lambda: Permanent(SURROGATE),
    "transient": lambda: Transient(SURROGATE),
    "arq's failure": lambda: JobExecutionFailed(SURROGATE),
    "canceled by itself": asyncio.CancelledError,
    "retry": Retry,
    "retry job": RetryJob,
    "bare retry": BareRetry,
    "retry in words": lambda: _odd_retry("soon"),
    "retry at no number": lambda: _odd_retry(float("nan")),
}
ASK_AGAIN = {"retry", "retry job", "canceled by itself"}


class _Unencodable:
    """A value that no serializer takes; some of them call `__reduce__`."""

    def __init__(self, what: BaseException) -> None:
        self.what = what

    def __reduce__(self) -> Any:
        raise self.what

    def __repr__(self) -> str:
        raise self.what


def _circle() -> list[Any]:
    ring: list[Any] = []
    ring.append(ring)
    return ring


def _deep() -> list[Any]:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


RETURNED: dict[str, Callable[[], Any]] = {
    "object": object,
    "object that raises": lambda: _Unencodable(ValueError("no")),
    "object that exits": lambda: _Unencodable(SystemExit(2)),
    "surrogate": lambda: SURROGATE,
    "circle": _circle,
    "deep": _deep,
    "large number": lambda: 2**4000,
    "large": lambda: bytes(65 * 1024 * 1024),
    "exception": lambda: ValueError(SURROGATE),
    "function": lambda: _circle,
}
