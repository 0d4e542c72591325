"""
A pytest plug-in for Letta's own manager tests: audits the cache after every outermost call.

managers.py runs them. They have a package `tests`, too, so this module and `audit` are
imported by their own names. They read nothing twice: without the audit they would
prove nothing.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import pytest
from audit import Audit, Reads  # type: ignore[import-not-found]
from sqlalchemy import select

from cache.connection import embedded
from letta_redis import install
from settings import Settings

_inside: ContextVar[bool] = ContextVar("inside", default=False)
_audit: Audit | None = None
STALE = 10  # exit code
_COUNTED = ("tests", "calls", "agents", "messages", "windows", "stale")
_counts: defaultdict[str, Counter[str]] = defaultdict(Counter)  # by test file
_calls = 0


def pytest_configure() -> None:
    install(Settings(redis_url=embedded.acquire("embedded://")))
    import letta.services

    for found in pkgutil.iter_modules(letta.services.__path__):
        if found.name.endswith("_manager"):
            module = importlib.import_module(f"letta.services.{found.name}")
            for value in list(vars(module).values()):
                if inspect.isclass(value) and value.__module__ == module.__name__:
                    _watch(value)


def _watch(manager: type) -> None:
    for name, method in list(vars(manager).items()):
        if inspect.iscoroutinefunction(inspect.unwrap(method)) and not name.startswith("_"):
            setattr(manager, name, _audited(f"{manager.__name__}.{name}", method))


def _audited(name: str, method: Any) -> Any:
    @functools.wraps(method)
    async def audited(*args: Any, **kwargs: Any) -> Any:
        if _inside.get() or _audit is None:
            return await method(*args, **kwargs)
        token = _inside.set(True)
        try:
            return await method(*args, **kwargs)
        finally:
            await _check(_audit, name)
            _inside.reset(token)

    return audited


async def _check(audit: Audit, name: str) -> None:
    global _calls  # noqa: PLW0603
    from letta.orm import Agent, User
    from letta.server.db import db_registry

    _calls += 1
    async with db_registry.async_session() as session:
        users = (await session.execute(select(User))).scalars().all()
        actors = {user.organization_id: user.to_pydantic() for user in users}
        rows = await session.execute(select(Agent.id, Agent.organization_id))
        audit.agents |= {row.id: actors[row.organization_id] for row in rows
                         if row.organization_id in actors}  # fmt: skip
    await audit.check(name)


@pytest.fixture(autouse=True)
async def _audit_of_the_test(request: pytest.FixtureRequest) -> AsyncIterator[None]:
    global _audit, _calls  # noqa: PLW0603
    from letta_redis.plugin.install import installed

    installation = installed()
    assert installation is not None
    assert "cache" in installation.halves
    await installation.runtime.start()
    _calls = 0
    _audit = audit = Audit(Reads(installation.runtime.cache()))
    yield
    _audit = None
    await installation.runtime.stop()
    _counts[request.path.stem].update(
        tests=1, calls=_calls, agents=audit.comparisons,
        messages=audit.messages, windows=audit.windows, stale=len(audit.stale),
    )  # fmt: skip
    assert audit.stale == []


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A stale read counts even in a test that fails without the plug-in, too."""
    if any(counts["stale"] for counts in _counts.values()):
        session.exitstatus = STALE


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What was compared: calls, and hits of agents, messages and windows, by test file."""
    rows = {**dict(sorted(_counts.items())), "all": sum(_counts.values(), Counter())}
    terminalreporter.write_line(f"{'audit':34}" + "".join(f"{name:>10}" for name in _COUNTED))
    for file, counts in rows.items():
        terminalreporter.write_line(
            f"{file:34}" + "".join(f"{counts[name]:10}" for name in _COUNTED)
        )


def pytest_unconfigure() -> None:
    embedded.release("embedded://")
