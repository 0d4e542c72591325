"""A user with the rights that docs/operations.md gives to clients and workers, and may lose in a test."""

from __future__ import annotations

from typing import Any

NAME = "weak"
RIGHTS = (
    *("resetchannels", "~arq:*", "&arq:*", "&__redis__:invalidate", "~{arq}*", "&{arq}*", "~lc:*"),
    *("+@all", "-@dangerous", "+info"),
)


def as_weak(url: str) -> str:
    """The URL of a server of `private_valkey_url` for the user."""
    return url.replace("unix://", f"unix://{NAME}:pw@")


async def set_rights(owner: Any, *rules: str) -> None:
    """Give or take rights: `+get`, `-get`, `off`."""
    await owner.execute_command("ACL", "SETUSER", NAME, *rules)
