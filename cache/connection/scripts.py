"""
Loads Lua scripts from the `lua` folder of a package, and runs them by digest.

The first comment of a script is its contract. A line `--@include name` is
replaced by the file `_name.lua`, of the same folder or of a package that the
caller names, so that scripts which must agree on a step share its text. The
server makes a script's functions anew at each call, about 0.1 us each: what only
one branch needs is included inside that branch, and a function that nothing calls
is left out.

A line `--@rights` becomes a check of the user's rights to all commands of the
script, `--@rights of writes HGET` of those that write and of HGET, which it reads
after a write, and `--@rights to HSET` of this one: each check costs about 0.5 us.
The commands of `--@include name unchecked` are left out: that step may fail. The
comments `-- rule name` and `-- end of rule` enclose what a test removes to show
that the rule is needed (tests/support/lua_rules.py).

Every script begins with `#!lua`, so that the server refuses it before it starts
(full, a replica, a key of another slot), and its contract says why it has the flag
`allow-oom` or not. The last of its keys never exists: while a cluster moves a slot,
the node refuses a script of which a declared key is missing. Without that key, a
script would stop at the first derived key that has moved, and leave half a write.
(Where a script uses one key alone, the cache leaves it out: such a call follows its key.)
"""

from __future__ import annotations

import hashlib
import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files
from importlib.util import resolve_name
from typing import Any

from redis.exceptions import NoScriptError

_INCLUDE = re.compile(r"^( *)--@include ([a-z_]+)( unchecked)?$", re.MULTILINE)
_FUNCTION = re.compile(
    r"^(?P<indent> *)local function (?P<name>\w+)\([^)\n]*\)\n.*?^(?P=indent)end\n",
    re.MULTILINE | re.DOTALL,
)
_COMMENT = re.compile(r"(?:^| )--.*", re.MULTILINE)
_RIGHTS = re.compile(r"^ *--@rights(?: (of writes|to)([A-Z ]*))?$", re.MULTILINE)
# Words of a script in capitals are commands, or one of these.
_OPTIONS = {
    "BYSCORE", "COUNT", "GT", "LIMIT", "LT", "MAXLEN", "NX", "OVERFLOW", "PX", "RANK", "REV", "SAT",
    "WITHSCORES", "WRONGTYPE", "XX",
}  # fmt: skip
# Commands that write nothing.
READS = {
    "EXISTS", "GET", "GETRANGE", "HEXISTS", "HGET", "HGETALL", "HLEN", "HMGET", "HSCAN", "HSTRLEN",
    "LINDEX", "LLEN", "LPOS", "LRANGE", "PTTL", "SCARD", "SISMEMBER", "SMEMBERS", "STRLEN", "TIME",
    "ZCARD", "ZCOUNT", "ZRANGE", "ZRANGEBYSCORE", "ZRANK", "ZSCORE",
}  # fmt: skip
# Servers before Redis 7 cannot say it.
_CHECK = (
    "for _, name in ipairs(redis.acl_check_cmd and {%s} or {}) do"
    " if not redis.acl_check_cmd(name, KEYS[1], KEYS[1]) then"
    " error({err = 'NOPERM the user may not run ' .. name .. ' on ' .. KEYS[1]}) end end"
)


class Script:
    """A script: its text, and the SHA-1 by which the server runs it."""

    __slots__ = ("name", "sha", "source")

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    async def run(
        self, client: Any, keys: Sequence[str], args: Sequence[Any] = (), *, alone: bool = False
    ) -> Any:
        """
        Run by EVALSHA. The text is sent only to a server that lacks it, such as a restarted one.

        `alone`: the script uses the one key of `keys`, and no other.
        """
        beside = () if alone else (absent_beside(keys[0]),)
        declared = (len(keys) + len(beside), *keys, *beside)
        try:
            return await client.evalsha(self.sha, *declared, *args)
        except NoScriptError:
            return await client.eval(self.source, *declared, *args)

    def command(self, keys: Sequence[str], args: Sequence[Any] = ()) -> tuple[Any, ...]:
        """The command that `run` sends first, for those who send it with others."""
        return ("EVALSHA", self.sha, len(keys) + 1, *keys, absent_beside(keys[0]), *args)

    def __repr__(self) -> str:
        return f"Script({self.name!r})"


@lru_cache(maxsize=1024)
def absent_beside(key: str) -> str:
    """A key that never exists, in the slot of `key`. It begins as `key` does, for rules of ACLs."""
    head, _, rest = key.partition("{")
    tag, end, _ = rest.partition("}")
    if tag and end:
        return f"{head}{{{tag}}}:absent"
    return f"{key[: key.find(':') + 1] or key}absent:{{{key}}}"


def commands_of(source: str) -> list[str]:
    """The commands that a script names."""
    return sorted(set(re.findall(r"'([A-Z]{3,})'", source)) - _OPTIONS)


@cache  # many scripts include the same steps
def _read(packages: tuple[str, ...], name: str) -> str:
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

    def included(text: str, *, unchecked: bool) -> str:
        def read(match: re.Match[str]) -> str:
            indent, step, is_unchecked = match.groups()
            if is_unchecked and not unchecked:
                return ""
            return textwrap.indent(included(_read(homes, "_" + step), unchecked=unchecked), indent)

        return _INCLUDE.sub(read, text)

    def whole(*, unchecked: bool) -> str:
        source = included(text, unchecked=unchecked)
        return source if name.startswith("_") else _without_unused(source)

    text = _read((package,), name)
    commands = commands_of(whole(unchecked=False))
    source = _RIGHTS.sub(lambda match: _check(commands, match[1], match[2]), whole(unchecked=True))
    return Script(name, source)


def _without_unused(source: str) -> str:
    """Leave out the functions that nothing in this script names: most shared steps have some."""
    code = _COMMENT.sub("", source)
    words = Counter(re.findall(r"\w+", code))
    made = Counter(match["name"] for match in _FUNCTION.finditer(source))
    unused = {name for name, count in made.items() if words[name] == count}
    if not unused:
        return source
    return _without_unused(
        _FUNCTION.sub(lambda match: "" if match["name"] in unused else match[0], source)
    )


def _check(commands: list[str], which: str | None, named: str | None) -> str:
    """Lua that ends a script, before it writes, if its user may not run one of these commands."""
    names = set((named or "").split())
    if which is None:
        names = set(commands)
    elif which == "of writes":
        names |= set(commands) - READS
    return _CHECK % ",".join(f"'{name}'" for name in sorted(names))
