"""
Recognizes pydantic's models and time zones without importing pydantic.

Importing pydantic takes longer than importing the whole cache, and many callers
store only dicts. Neither can exist before somebody has imported it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    from pydantic import BaseModel


def is_model(value: Any) -> TypeGuard[BaseModel]:
    return _is_a(value, "pydantic.main", "BaseModel")


def is_zone(value: Any) -> bool:
    """Whether a value is pydantic's own time zone, a fixed offset."""
    return _is_a(value, "pydantic_core._pydantic_core", "TzInfo")


def _is_a(value: Any, module: str, name: str) -> bool:
    kind = getattr(sys.modules.get(module), name, None)
    return kind is not None and isinstance(value, kind)
