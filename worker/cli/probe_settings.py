"""
Reads settings as the probe needs them: as texts, without the packages that parse and check them.

The sources and their order are those of `Settings`: variables, then `.env`, then secrets files.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

_PREFIX = "LETTA_"
_DOTENV = ".env"


def probe_settings() -> dict[str, str]:
    """
    Return the settings that are given, by lower-case field name.

    Raises:
        ValueError: whether `.env` counts is for the settings to decide.
    """
    values = dict(_secrets(os.environ.get(_PREFIX + "SECRETS_DIR", "/run/secrets")))
    values |= _from_dotenv()
    values |= {name.lower(): value for name, value in os.environ.items() if value}
    prefix = _PREFIX.lower()
    return {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}


def _from_dotenv() -> dict[str, str]:
    try:
        found = os.lstat(_DOTENV)
    except OSError:
        return {}
    # A link, or what others may have written: `why_untrusted` of the settings decides.
    own_group = found.st_gid in {0, os.getegid()}
    others = stat.S_IWOTH if own_group else stat.S_IWOTH | stat.S_IWGRP
    is_own = found.st_uid in {0, os.geteuid()} and not found.st_mode & others
    if not (stat.S_ISREG(found.st_mode) and is_own):
        raise ValueError("the settings decide whether this .env counts")
    from dotenv import dotenv_values

    values = dotenv_values(_DOTENV, encoding="utf-8")
    return {name.lower(): value for name, value in values.items() if value}


def _secrets(folder: str) -> Iterator[tuple[str, str]]:
    if os.path.isdir(folder):  # noqa: PTH112  (pathlib takes longer to import than this to run)
        for name in os.listdir(folder):  # noqa: PTH208
            if name.lower().startswith(_PREFIX.lower()):
                with open(os.path.join(folder, name), encoding="utf-8") as file:  # noqa: PTH118, PTH123
                    yield name.lower(), file.read().strip()
