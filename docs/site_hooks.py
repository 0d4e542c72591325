"""
Hooks of mkdocs.yml: the pages beside docs/ (README, CHANGELOG, ...) become pages of the site.

Links between the two are rewritten; a link to a file that is no page keeps its text alone.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
_LINK = re.compile(r"\[([^\]]+)\]\(([^)#:\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Every decision is in the navigation, without a line for each in mkdocs.yml."""
    (decisions,) = (entry["Decisions"] for entry in config.nav if "Decisions" in entry)
    found = sorted((Path(config.docs_dir) / "decisions").glob("[0-9]*.md"))
    decisions.extend(f"decisions/{page.name}" for page in found)
    return config


def on_files(files: Any, *, config: Any) -> Any:
    for source, target in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=relinked(text, "", target)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    source = page.file.src_uri
    if source in PAGES.values():
        return markdown
    return relinked(markdown, posixpath.dirname(f"docs/{source}"), source)


def relinked(markdown: str, folder: str, page: str) -> str:
    """Links of a file in `folder` of the repository, as they lead from `page` of the site."""

    def link(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        place = posixpath.normpath(posixpath.join(folder, target))
        if place in PAGES:
            place = PAGES[place]
        elif place.startswith("docs/"):
            place = place.removeprefix("docs/")
        else:
            return text
        return f"[{text}]({posixpath.relpath(place, posixpath.dirname(page) or '.')}{anchor})"

    return _LINK.sub(link, markdown)
