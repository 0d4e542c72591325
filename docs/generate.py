"""
Writes docs/settings.md and docs/keys.md from the code, or checks that they are up to date.

    python -m docs.generate            # write
    python -m docs.generate --check    # exit 1 and name the outdated files
"""

from __future__ import annotations

import sys
from pathlib import Path

from pydantic import SecretStr

import cache.keys
import worker.keys
from settings import Settings, accepted, variable_name

HERE = Path(__file__).parent


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "`make docs` generates this page from the class `Settings`; do not edit it. Each variable can",
        "also be set in a `.env` file in the working directory, or as a file of that name in the secrets",
        "directory (`LETTA_SECRETS_DIR`, else `/run/secrets`). The environment wins over `.env`, and",
        "`.env` wins over the secrets files. A `.env` is read only if it belongs to you or root and nobody",
        "else can write to it; the same condition holds for modules in the working directory. A wrong",
        "value ends a command with exit code 2 and one line that says what is accepted.",
        "",
        "| variable | default | accepted | meaning |",
        "|---|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, SecretStr):
            raise TypeError(f"{name}: a secret must have no default")
        shown = "unset" if default is None else "empty" if default == "" else f"`{default}`"
        cells = (f"`{variable_name(name)}`", shown, accepted(field), field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def keys_page() -> str:
    lines = [
        "# Keys",
        "",
        "`make docs` generates this page from `worker/keys.py` and `cache/keys.py`; do not edit it. All keys",
        "of the queue begin with `arq:`, all keys of the cache with `lc:`. The last column names what bounds",
        "each key's size or life.",
        "",
        "| key | type | holds | bound |",
        "|---|---|---|---|",
    ]
    catalogue = worker.keys.CATALOGUE + cache.keys.CATALOGUE
    lines += [f"| `{s.pattern}` | {s.type} | {s.holds} | {s.bound} |" for s in catalogue]
    return "\n".join(lines) + "\n"


PAGES = {"settings.md": settings_page, "keys.md": keys_page}


def main() -> int:
    outdated = []
    for name, page in PAGES.items():
        path, text = HERE / name, page()
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            outdated.append(name)
    if outdated:
        sys.stderr.write(f"outdated: {', '.join(outdated)}; run `make docs`\n")
    return 1 if outdated else 0


if __name__ == "__main__":
    sys.exit(main())
