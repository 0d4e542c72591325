"""
Writes docs/settings.md and docs/keys.md from the code, or checks that they are current.

    python -m docs.generate            # write
    python -m docs.generate --check    # exit 1 and name the file that is not current
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
        "Written from the class `Settings` by `make docs`; do not edit. Every variable may also stand",
        "in a `.env` file of the working directory, or as a file of that name in the secrets directory",
        "(`LETTA_SECRETS_DIR`, else `/run/secrets`). The environment wins over `.env`, and `.env` over",
        "the files. A `.env` is read only where it belongs to you or root and nobody else can write to",
        "it; modules of the working directory are found under the same condition. A wrong value ends a",
        "command with exit code 2 and one line that says what is accepted.",
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
        "Written from `worker/keys.py` and `cache/keys.py` by `make docs`; do not edit. Everything of the",
        "queue's server is under `arq:`, everything of the cache's under `lc:`; each has what keeps it small.",
        "",
        "| key | type | holds | bound |",
        "|---|---|---|---|",
    ]
    catalogue = worker.keys.CATALOGUE + cache.keys.CATALOGUE
    lines += [f"| `{s.pattern}` | {s.type} | {s.holds} | {s.bound} |" for s in catalogue]
    return "\n".join(lines) + "\n"


PAGES = {"settings.md": settings_page, "keys.md": keys_page}


def main() -> int:
    stale = []
    for name, page in PAGES.items():
        path, text = HERE / name, page()
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    if stale:
        sys.stderr.write(f"not current: {', '.join(stale)}; run `make docs`\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
