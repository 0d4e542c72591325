"""
Imports packages without the large ones that they might use.

redis-py imports jwt, and with it cryptography, for logins by token; structlog
imports rich, if it is there, for tracebacks with local variables, and httpx for
its command line. The workers do none of that, and each process saves a quarter
of a second of CPU and 10 MB. Only a process of our own does this: a service's
imports are its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any


def import_lightly(*also: str) -> None:
    """Import redis-py, structlog and these packages. Call it before any thread starts."""
    with _hidden({"jwt": _Later("jwt")}):
        import redis.asyncio  # noqa: F401
    with _hidden({"rich": None, "pygments": None, "colorama": None}):
        import structlog  # noqa: F401

        for package in also:
            import_module(package)


class _Later(ModuleType):
    """Stands for a module until one of its names is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module(self.__name__), name)


@contextmanager
def _hidden(modules: dict[str, ModuleType | None]) -> Iterator[None]:
    """Let imports find these modules instead of the real ones. None: as if not installed."""
    replaced = {name: found for name, found in modules.items() if name not in sys.modules}
    sys.modules.update(replaced)  # type: ignore[arg-type]  # None makes `import` fail
    try:
        yield
    finally:
        for name in replaced:
            del sys.modules[name]
