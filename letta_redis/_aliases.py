"""
Imports a package under a second name, as the same module object.

The repository has the sources at its top (`worker`, `cache`, `settings`), a wheel has
them in `letta_redis`. This module gives each layout the names of the other one, so that
`worker.Priority is letta_redis.worker.Priority` in both, and no module is executed twice.

importlib recognizes finders and loaders by their methods. Their base classes are not
imported, because `importlib.abc` takes longer to import than everything else here.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from importlib.abc import InspectLoader, MetaPathFinder
    from types import CodeType, ModuleType
else:
    InspectLoader = MetaPathFinder = object

# In the order in which names are looked up: settings last, because they import pydantic.
PARTS = ("cache", "worker", "settings")
_ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))  # noqa: PTH120


def add(names: Mapping[str, str], *, last: bool = False) -> None:
    """
    Make each package `alias` of `{alias: real}` importable, with all its submodules.

    With `last`, a package of that name anywhere on `sys.path` wins over the alias.
    """
    packages = _Packages(names)
    if last:
        sys.meta_path.append(packages)
    else:
        sys.meta_path.insert(0, packages)
    # Always first: an alias shares the `__path__` of the real package, so the ordinary finder
    # would find a submodule there and execute it again.
    sys.meta_path.insert(0, _Submodules(names))


class _Packages(MetaPathFinder):
    """Finds the aliases themselves."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: Any = None
    ) -> ModuleSpec | None:
        real = self._names.get(fullname)
        return None if real is None else _alias(fullname, real)


class _Submodules(MetaPathFinder):
    """Finds the submodules of an alias, unless another package of that name was imported."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = names

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None = None, _target: Any = None
    ) -> ModuleSpec | None:
        for alias, real in self._names.items():
            if fullname.startswith(alias + "."):
                package = sys.modules.get(alias)
                if package is not None and package is sys.modules.get(real):
                    return _alias(fullname, real + fullname.removeprefix(alias))
        return None


def _alias(fullname: str, real: str) -> ModuleSpec | None:
    found = find_spec(real)
    if found is None:
        return None
    if not _is_ours(real, found):
        raise ImportError(
            f"{fullname}: this is a checkout of letta-redis, whose own {real!r} is hidden by "
            f"{found.origin}; install letta-redis from a wheel, not with `pip install -e`",
            name=fullname,
        )
    spec = ModuleSpec(fullname, _Loader(real), origin=found.origin)
    spec.submodule_search_locations = found.submodule_search_locations
    return spec


def _is_ours(name: str, spec: ModuleSpec) -> bool:
    place = os.path.join(_ROOT, *name.split("."))  # noqa: PTH118
    files = (f"{place}.py", os.path.join(place, "__init__.py"))  # noqa: PTH118
    return spec.origin is not None and os.path.realpath(spec.origin) in files


class _Loader(InspectLoader):
    def __init__(self, real: str) -> None:
        self._real = real
        self._spec: ModuleSpec | None = None

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        module = import_module(self._real)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The module has been executed. importlib has replaced its spec by the alias's, but
        # resources, reload() and repr() need its own.
        module.__spec__ = self._spec

    def get_code(self, _fullname: str) -> CodeType | None:
        """The code that `python -m <alias>` runs."""
        return self._real_loader().get_code(self._real)

    def get_source(self, _fullname: str) -> str | None:
        return self._real_loader().get_source(self._real)

    def is_package(self, _fullname: str) -> bool:
        return self._real_loader().is_package(self._real)

    def _real_loader(self) -> InspectLoader:
        found = find_spec(self._real)
        assert found is not None  # noqa: S101  (find_spec of the alias has found it)
        return cast("InspectLoader", found.loader)
