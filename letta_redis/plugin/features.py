"""Lists the features of the plug-in in the order of their installation."""

from __future__ import annotations

from letta_redis.plugin import (
    actors,
    agents,
    batches,
    callbacks,
    children,
    messages,
    runs,
    schemas,
    serving,
    sessions,
    windows,
)
from letta_redis.plugin.seams import Feature

FEATURES: tuple[Feature, ...] = (
    serving.FEATURE,
    schemas.FEATURE,
    agents.FEATURE,
    actors.FEATURE,
    messages.FEATURE,
    windows.FEATURE,
    children.FEATURE,
    sessions.FEATURE,
    runs.FEATURE,
    callbacks.FEATURE,
    batches.FEATURE,
)
