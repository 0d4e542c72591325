"""Reads fenced blocks of a Markdown page, for tests that run the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"

_FENCE = re.compile(
    r"^(<!-- not run: [^\n]+ -->\n)?```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
_TITLE = re.compile(r'title="([^"]+)"')


@dataclass(frozen=True, slots=True)
class Block:
    """
    One fenced block. `line` is where its text begins, counted from 1.

    A Python block without a title is a complete script; one with a title is a
    file that later scripts import. `runs` is False behind a comment of the form
    `<!-- not run: reason -->`. `output` is the text that the page promises the script prints, if it does.
    """

    language: str
    title: str
    runs: bool
    line: int
    text: str
    output: str | None = None

    @property
    def is_script(self) -> bool:
        return self.language == "python" and self.runs and not self.title

    @property
    def is_file(self) -> bool:
        return self.runs and self.title not in ("", "Output")


def blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        excuse, language, info, body = match.groups()
        title = _TITLE.search(info)
        follows = _FENCE.match(text, len(text) - len(text[match.end() :].lstrip()))
        promised = follows is not None and 'title="Output"' in follows[3]
        found.append(
            Block(
                language=language,
                title=title[1] if title else "",
                runs=excuse is None,
                line=text.count("\n", 0, match.start(4)) + 1,
                text=body,
                output=follows[4] if follows is not None and promised else None,
            )
        )
    return found


def pages_with_code() -> list[Path]:
    """README and every page directly under docs/ that shows Python."""
    pages = [README, *sorted((ROOT / "docs").glob("*.md"))]
    return [page for page in pages if any(block.language == "python" for block in blocks(page))]
