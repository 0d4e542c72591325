"""
Loads Lua scripts from the `lua` folder of a package, and runs them by digest.

The first comment of a script is its contract. A line `--@include name` is
replaced by the file `_name.lua`, of the same folder or of a package that the
caller names, so that scripts which must agree on a step share its text. The
comments `-- rule name` and `-- end of rule` enclose what a test removes to show
that the rule is needed (tests/support/lua_rules.py).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from importlib.util import resolve_name
from typing import Any

from redis.exceptions import NoScriptError

_INCLUDE = re.compile(r"^--@include ([a-z_]+)$", re.MULTILINE)


class Script:
    """A script: its text, and the SHA-1 by which the server runs it."""

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    async def run(self, client: Any, keys: Sequence[Any], args: Sequence[Any] = ()) -> Any:
        """Run by EVALSHA. The text is sent only to a server that lacks it, such as a restarted one."""
        try:
            return await client.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await client.eval(self.source, len(keys), *keys, *args)

    def __repr__(self) -> str:
        return f"Script({self.name!r})"


def _read(packages: Sequence[str], name: str) -> str:
    for home in packages:
        path = files(home) / "lua" / f"{name}.lua"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"no lua/{name}.lua in {' or '.join(packages)}")


@cache
def load(package: str, name: str, *shared: str) -> Script:
    """
    The script `lua/<name>.lua` of a package, with its includes.

    Includes are looked up in `package`, then in `shared`: packages named as in a relative
    import, so `..queue` is a sibling of `package`.
    """
    homes = (package, *(resolve_name(home, package) for home in shared))
    source = _INCLUDE.sub(lambda match: _read(homes, "_" + match[1]), _read([package], name))
    return Script(name, source)
