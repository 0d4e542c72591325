"""
Defines seams, the places of the Letta server that the plug-in replaces or relies on; checks them.

A seam is as expected if its signature is, and its source has a digest that this release
knows. Read the source before you add its digest.
"""

from __future__ import annotations

import hashlib
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from letta_redis.plugin.runtime import Runtime

Half = Literal["cache", "queue"]
Replace = Callable[["Runtime", Any], Any]


@dataclass(frozen=True, slots=True)
class Seam:
    """
    One place in the Letta server.

    Args:
        target: `package.module:name` or `package.module:Class.name`.
        purpose: what we use it for, for `letta-redis doctor`.
        signature: names, kinds and defaults of the parameters, without annotations. None if only
            the source matters.
        digests: of the source; empty if any version of a foreign package works.
        replace: builds the replacement from the runtime and the original. None if we only rely on
            the original's behavior.
    """

    target: str
    purpose: str
    signature: str | None
    digests: tuple[str, ...] = ()
    replace: Replace | None = None


@dataclass(frozen=True, slots=True)
class Feature:
    """
    Seams that belong together, in one half of the plug-in.

    Args:
        half: None if both halves need it.
        attach: called after the half's seams are replaced; for hooks that are not attributes,
            such as SQLAlchemy's events. Returns the function that detaches them.
    """

    name: str
    half: Half | None
    seams: tuple[Seam, ...]
    attach: Callable[[Runtime], Callable[[], None]] | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of checking one seam. `problem` is None if it is as expected."""

    feature: Feature
    seam: Seam
    problem: str | None = None


class Missing(Exception):
    """A target does not exist."""


def check(feature: Feature, seam: Seam) -> Finding:
    """Compare a seam with what is installed. Imports the module of the target."""
    try:
        owner, name = resolve(seam.target)
        found = getattr(owner, name)
    except Missing as exc:
        return Finding(feature, seam, str(exc))
    return Finding(feature, seam, _difference(seam, found))


def resolve(target: str) -> tuple[Any, str]:
    """
    Return the object that holds a target, and the name of the attribute.

    Raises:
        Missing: the module cannot be imported, or lacks it.
    """
    module, _, path = target.partition(":")
    try:
        owner: Any = import_module(module)
    except Exception as exc:
        raise Missing(f"cannot be imported: {type(exc).__name__}: {exc}") from exc
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent, None)
    if not hasattr(owner, name):
        raise Missing("does not exist")
    return owner, name


def signature_of(found: Any) -> str:
    """The parameters of a function or class, without annotations: those differ by Python version."""
    signature = inspect.signature(inspect.unwrap(found))
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def digest_of(found: Any) -> str:
    """A digest of the source of a function or class, without its decorators' sources."""
    source = textwrap.dedent(inspect.getsource(inspect.unwrap(found)))
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def _difference(seam: Seam, found: Any) -> str | None:
    if seam.signature is not None:
        try:
            signature = signature_of(found)
        except (TypeError, ValueError):
            return "is not callable, or hides its signature"
        if signature != seam.signature:
            return f"has the signature {signature}, not {seam.signature}"
    if not seam.digests:
        return None
    try:
        digest = digest_of(found)
    except (OSError, TypeError):
        return "has no source to compare"
    if digest not in seam.digests:
        return f"has a source of digest {digest}, which this release does not know"
    return None
