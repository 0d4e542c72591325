"""
A pytest plug-in for Letta's own manager tests: audits the cache after every outermost call.

    cd SOURCES_OF_LETTA
    PYTHONPATH=HERE:HERE/tests/letta LETTA_PG_URI=... pytest -p manager_audit tests/managers

Those tests have a package `tests`, too, so this module and `audit` are imported by
their own names. They read nothing twice: without the audit they would prove nothing.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
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
_calls = _comparisons = 0
_stale: list[str] = []


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
    global _audit, _comparisons  # noqa: PLW0603
    from letta_redis.plugin.install import installed

    installation = installed()
    assert installation is not None
    assert "cache" in installation.halves
    await installation.runtime.start()
    _audit = audit = Audit(Reads(installation.runtime.cache()))
    yield
    _audit = None
    await installation.runtime.stop()
    _comparisons += audit.comparisons
    _stale.extend(f"{request.node.name}: {line}" for line in audit.stale)
    assert audit.stale == []


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.write_line(
        f"audit: {_calls} calls, {_comparisons} comparisons, {len(_stale)} stale"
    )


def pytest_unconfigure() -> None:
    embedded.release("embedded://")
