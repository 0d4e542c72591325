"""
Installs the plug-in in this process's Letta server, half by half, and uninstalls it.

A half (the cache, the queue) is installed whole or not at all: all of its seams are
checked before the first one is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from cache.logs import get_logger
from letta_redis.plugin import seams
from letta_redis.plugin.features import FEATURES
from letta_redis.plugin.runtime import Runtime
from letta_redis.plugin.seams import Feature, Finding, Half

if TYPE_CHECKING:
    from settings import Settings

log = get_logger("letta_redis")

HALVES = tuple(dict.fromkeys(feature.half for feature in FEATURES if feature.half is not None))
# The effect of a half that stays off, for the log line.
_FOLLOWS: dict[Half, str] = {
    "cache": "agents are read from PostgreSQL, as without the plug-in",
    "queue": "the server posts its webhooks itself, as without the plug-in",
}


@dataclass(slots=True)
class Installation:
    """What is installed in this process."""

    runtime: Runtime
    findings: list[Finding]
    halves: set[Half] = field(default_factory=set)
    undo: list[Callable[[], None]] = field(default_factory=list)


_installation: Installation | None = None


def install(settings: Settings | None = None) -> Installation:
    """
    Install the plug-in. Call it before `letta.server.rest_api.app` is imported.

    Logs one line for each seam that is not as expected; its half stays off. A second call returns
    the first one's installation.

    Raises:
        SettingsError: a setting is wrong.
    """
    return _install(settings, is_child=False)


def install_in_child() -> None:
    """Install in a process that the server has spawned, so that its writes are announced as well."""
    _install(None, is_child=True)


def installed() -> Installation | None:
    """What is installed in this process, or None."""
    return _installation


def uninstall() -> None:
    """Restore every seam. Close the runtime first."""
    global _installation  # noqa: PLW0603  (one plug-in for each process)
    if _installation is not None:
        _undo(_installation.undo)
        _installation = None


def findings(features: tuple[Feature, ...] = FEATURES) -> list[Finding]:
    """Check every seam. Imports the Letta server."""
    return [seams.check(feature, seam) for feature in features for seam in feature.seams]


def _install(settings: Settings | None, *, is_child: bool) -> Installation:
    global _installation  # noqa: PLW0603
    if _installation is not None:
        return _installation
    if settings is None:
        from settings import get_settings

        settings = get_settings()
    runtime = Runtime(settings, opens_by_itself=is_child, install_in_child=install_in_child)
    installation = Installation(runtime, findings())
    halves = [half for half in HALVES if _is_as_expected(half, installation.findings)]
    if halves:
        try:
            installation.undo = _patch(halves, runtime)
            installation.halves.update(halves)
        except Exception:
            log.exception("letta.install_failed")
    _installation = installation
    log.info("letta.installed", halves=halves)
    return installation


def blocked(half: Half, found: list[Finding]) -> list[Finding]:
    """The findings that keep a half off."""
    return [f for f in found if f.feature.half in (half, None) and f.problem is not None]


def _is_as_expected(half: Half, found: list[Finding]) -> bool:
    """Whether a half may be installed. Logs each seam that forbids it."""
    wrong = blocked(half, found)
    for finding in wrong:
        log.warning(
            "letta.seam_unknown",
            half=half,
            seam=finding.seam.target,
            problem=finding.problem,
            follows=_FOLLOWS[half],
        )
    return not wrong


def _patch(halves: list[Half], runtime: Runtime) -> list[Callable[[], None]]:
    """Replace every seam of these halves. If one fails, restore those before it."""
    undo: list[Callable[[], None]] = []
    try:
        for feature in FEATURES:
            if feature.half is not None and feature.half not in halves:
                continue
            for seam in feature.seams:
                if seam.replace is not None:
                    replacement = partial(seam.replace, runtime)
                    undo.append(_replace(seam.target, replacement))
            if feature.attach is not None:
                undo.append(feature.attach(runtime))
    except BaseException:
        _undo(undo)
        raise
    return undo


def _replace(target: str, make: Callable[[Any], Any]) -> Callable[[], None]:
    owner, name = seams.resolve(target)
    original = owner.__dict__[name]
    setattr(owner, name, make(getattr(owner, name)))
    return lambda: setattr(owner, name, original)


def _undo(steps: list[Callable[[], None]]) -> None:
    while steps:
        steps.pop()()
