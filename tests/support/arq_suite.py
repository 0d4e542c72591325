"""
Runs arq's own tests on our worker, as a pytest plugin: `make arq-test`.

The tests are fetched, not kept here. Whoever names no serializer gets pickle, as in arq. docs/arq.md
lists the tests that deviate. One whose reason is `log text` runs without the statements that read
the log; any other one must fail. All others must pass as they are.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import pickle
import re
import sys
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

import arq.worker
import pytest

from tests.support.servers import valkey
from worker.engine import Worker

PAGE = Path(__file__).parents[2] / "docs" / "arq.md"
LOG_TEXT, UNSTABLE = "log text", "timing"
_ROW = re.compile(r"^\| `(test_\w+)::(test_\w+)` \| (.+) \|$", re.MULTILINE)


class PickleWorker(Worker):
    """Our worker with the serializers that arq takes when none are named."""

    # arq reads from it which of a settings class's attributes are arguments.
    __signature__ = inspect.signature(arq.worker.Worker)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["job_serializer"] = kwargs.get("job_serializer") or pickle.dumps
        kwargs["job_deserializer"] = kwargs.get("job_deserializer") or pickle.loads
        super().__init__(*args, **kwargs)


class RedisContainer:
    """The part of `testcontainers.redis.RedisContainer` that arq's tests use, without Docker."""

    port = 6379
    _server: AbstractContextManager[int]
    _home: tempfile.TemporaryDirectory[str]

    def __init__(self, image: str) -> None:
        self.image = image

    def __enter__(self) -> RedisContainer:
        self._home = tempfile.TemporaryDirectory()
        self._server = valkey(Path(self._home.name))
        self.port = self._server.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.__exit__(None, None, None)
        self._home.cleanup()

    def get_container_host_ip(self) -> str:
        return "127.0.0.1"

    def get_exposed_port(self, port: int) -> int:
        return port


def _stand_in() -> None:
    """Put our worker and server where arq's tests import theirs from."""
    arq.Worker = arq.worker.Worker = PickleWorker  # type: ignore[misc]
    redis: Any = ModuleType("testcontainers.redis")
    redis.RedisContainer = RedisContainer
    sys.modules["testcontainers"] = ModuleType("testcontainers")
    sys.modules["testcontainers.redis"] = redis


_stand_in()  # pytest imports arq's conftest before it calls a plugin's first hook


@pytest.fixture
async def event_loop() -> asyncio.AbstractEventLoop:
    """The fixture that pytest-asyncio had before 1.0, which arq's tests ask for."""
    return asyncio.get_running_loop()


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Treat the listed tests as their reasons say."""
    listed = {(module, test): why for module, test, why in _ROW.findall(PAGE.read_text())}
    found = {(item.path.stem, item.originalname) for item in items}
    stale = listed.keys() - found
    if stale and {module for module, _ in stale} <= {module for module, _ in found}:
        raise pytest.UsageError(f"{PAGE} lists tests that arq does not have: {sorted(stale)}")
    for item in items:
        why = listed.get((item.path.stem, item.originalname))
        if why == LOG_TEXT:
            item.obj = without_log(item.obj)
        elif why is not None:
            strict = not why.startswith(UNSTABLE)
            item.add_marker(pytest.mark.xfail(reason=why, strict=strict))


def without_log(test: Callable[..., Any]) -> Callable[..., Any]:
    """Return the test without each statement that depends on the log that pytest captured."""
    tree = ast.parse(inspect.getsource(test))
    reader = _LogReader()
    reader.visit(tree)
    if not reader.dropped:
        raise pytest.UsageError(f"{test.__name__} does not read the log")
    ast.increment_lineno(tree, test.__code__.co_firstlineno - 1)
    names = dict(test.__globals__)
    exec(compile(ast.fix_missing_locations(tree), test.__code__.co_filename, "exec"), names)
    function: Callable[..., Any] = names[test.__name__]
    return function


class _LogReader(ast.NodeTransformer):
    """Replaces statements that read `caplog`, or a name assigned from it, by `pass`."""

    def __init__(self) -> None:
        self.names = {"caplog"}
        self.dropped = 0

    def visit(self, node: ast.AST) -> Any:
        if not isinstance(node, ast.Assert | ast.Assign | ast.If):
            return self.generic_visit(node)
        read = {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}
        if read.isdisjoint(self.names):
            return self.generic_visit(node)
        if isinstance(node, ast.Assign):
            self.names |= {t.id for t in node.targets if isinstance(t, ast.Name)}
        self.dropped += 1
        return ast.Pass()
