"""
Lays the code under `letta_redis/` in a wheel, so that no project's own `worker`, `cache` or `settings` meets it.

The sources stand at the top of the repository and import each other by those
names (`from cache.errors import ...`). A wheel carries them as
`letta_redis/worker/`, `letta_redis/cache/` and `letta_redis/settings.py`, with
the module of each import renamed. Nothing else changes, so that line numbers of
a traceback are the repository's. An editable install uses the sources as they
are; letta_redis/_aliases.py gives each layout the other one's names.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PUBLIC = "letta_redis"
PARTS = ("cache", "settings", "worker")


class PublicName(BuildHookInterface[BuilderConfig]):
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        root = Path(self.root)
        self._rewritten = TemporaryDirectory(prefix="letta-redis-wheel-")
        sources = self._sources(root)
        for source in sources:
            path = source.relative_to(root)
            target = path if path.parts[0] == PUBLIC else Path(PUBLIC, path)
            if source.suffix == ".py":
                text = rename_imports(source.read_bytes(), str(path))
                source = Path(self._rewritten.name, target)  # noqa: PLW2901
                source.parent.mkdir(parents=True, exist_ok=True)
                source.write_bytes(text)
            build_data["force_include"][str(source)] = str(target)

    def finalize(self, version: str, _build_data: dict[str, Any], _artifact: str) -> None:
        if version != "editable":
            self._rewritten.cleanup()

    def _sources(self, root: Path) -> Iterator[Path]:
        for part in (PUBLIC, *PARTS):
            for path in sorted([root / f"{part}.py", *(root / part).rglob("*")]):
                relative = str(path.relative_to(root))
                if path.is_file() and not self.build_config.path_is_excluded(relative):
                    yield path


def rename_imports(source: bytes, path: str) -> bytes:
    """
    A module's text with `from worker.x import y` as `from letta_redis.worker.x import y`.

    Raises:
        ValueError: an import binds `worker`, `cache` or `settings` itself to a
            package, which has no equivalent on one line.
    """
    lines = source.splitlines(keepends=True)
    found = [
        node
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    # From the end, so that the columns before stay right.
    for node in sorted(found, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        if isinstance(node, ast.ImportFrom):
            if node.level == 0 and _is_ours(node.module):
                _replace(lines, node, rb"from\s+", path)
            continue
        for name in reversed(node.names):
            if _is_ours(name.name):
                if name.asname is None:
                    raise ValueError(
                        f"{path}:{node.lineno}: write `from {name.name} import ...`, "
                        f"not `import {name.name}`"
                    )
                _replace(lines, name, rb"", path)
    return b"".join(lines)


def _is_ours(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in PARTS


def _replace(
    lines: list[bytes], node: ast.ImportFrom | ast.alias, before: bytes, path: str
) -> None:
    """Put the public name in front of the module's, which follows `before` at the node."""
    line = lines[node.lineno - 1]
    match = re.compile(before + rb"(?=" + "|".join(PARTS).encode() + rb"\b)").match(
        line, node.col_offset
    )
    if match is None:
        raise ValueError(f"{path}:{node.lineno}: cannot find the module's name on this line")
    lines[node.lineno - 1] = line[: match.end()] + PUBLIC.encode() + b"." + line[match.end() :]
