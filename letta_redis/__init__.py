"""
The public name: everything that a service imports.

    from letta_redis import open_cache, open_queue, Priority

Each name is loaded at its first use. Importing the package reads no environment
and needs no arq.
"""

from __future__ import annotations

from importlib import import_module
from importlib.machinery import PathFinder
from typing import TYPE_CHECKING, Any

from letta_redis import _aliases

if TYPE_CHECKING:
    from cache import (
        Cache,
        CacheError,
        CacheOptions,
        CacheUnavailable,
        CodecError,
        EmbeddedServerError,
        Invalidator,
        InvalidName,
        Keyring,
        Lease,
        LeaseHeld,
        LeaseLost,
        LoaderTimeout,
        LocalOptions,
        MissingExtra,
        NamedLease,
        NotEncodable,
        RedisUnavailable,
        UnsupportedRedisURL,
        WriteToken,
        open_cache,
        open_invalidator,
    )
    from letta_redis.plugin.install import install, install_in_child, installed, uninstall
    from settings import Settings, SettingsError, get_settings, load_settings
    from worker import (
        Call,
        EnqueueRefused,
        InvalidArgument,
        InvalidWebhookURL,
        Job,
        JobAborted,
        JobFailed,
        JobQueue,
        JobStatus,
        NotConfirmed,
        NotFound,
        NotSerializable,
        PayloadTooLarge,
        Permanent,
        Priority,
        QueueDisabled,
        QueueFull,
        QueueMemoryFull,
        QueueUnavailable,
        RequestFailed,
        ResultTimeout,
        Transient,
        Unique,
        UnknownProvider,
        WorkerError,
        WorkerSettings,
        call,
        open_queue,
    )

    __version__: str

__all__ = [
    "Cache",
    "CacheError",
    "CacheOptions",
    "CacheUnavailable",
    "Call",
    "CodecError",
    "EmbeddedServerError",
    "EnqueueRefused",
    "InvalidArgument",
    "InvalidName",
    "InvalidWebhookURL",
    "Invalidator",
    "Job",
    "JobAborted",
    "JobFailed",
    "JobQueue",
    "JobStatus",
    "Keyring",
    "Lease",
    "LeaseHeld",
    "LeaseLost",
    "LoaderTimeout",
    "LocalOptions",
    "MissingExtra",
    "NamedLease",
    "NotConfirmed",
    "NotEncodable",
    "NotFound",
    "NotSerializable",
    "PayloadTooLarge",
    "Permanent",
    "Priority",
    "QueueDisabled",
    "QueueFull",
    "QueueMemoryFull",
    "QueueUnavailable",
    "RedisUnavailable",
    "RequestFailed",
    "ResultTimeout",
    "Settings",
    "SettingsError",
    "Transient",
    "Unique",
    "UnknownProvider",
    "UnsupportedRedisURL",
    "WorkerError",
    "WorkerSettings",
    "WriteToken",
    "__version__",
    "call",
    "get_settings",
    "install",
    "install_in_child",
    "installed",
    "load_settings",
    "open_cache",
    "open_invalidator",
    "open_queue",
    "uninstall",
]

_PLUGIN = ("install", "install_in_child", "installed", "uninstall")

# A wheel has the three parts below this package. A checkout has them beside it.
if PathFinder.find_spec(f"{__name__}.worker", __path__) is None:
    _aliases.add({f"{__name__}.{part}": part for part in _aliases.PARTS})


def __getattr__(name: str) -> Any:
    if name in _aliases.PARTS:
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = _load(name)
    return found


def _load(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("letta-redis")
    if name in _PLUGIN:
        return getattr(import_module(f"{__name__}.plugin.install"), name)
    for part in _aliases.PARTS:
        module = import_module(f"{__name__}.{part}")
        if name in module.__all__:
            return getattr(module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_aliases.PARTS})
