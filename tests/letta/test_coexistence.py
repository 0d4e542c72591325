"""Tests that the base install fits into Letta's environment, and that no key is both Letta's and ours."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from cache.keys import CACHE_PREFIX
from tests.letta.postgres import CACHE, ROOT
from worker.keys import QUEUE_PREFIX

pytestmark = pytest.mark.acceptance


def locked() -> dict[str, str]:
    """The versions that the server's own release pins."""
    packages = tomllib.loads((CACHE / "source" / "uv.lock").read_text())["package"]
    return {package["name"]: package.get("version", "") for package in packages}


def test_the_base_install_moves_no_pin_of_letta() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ours = [Requirement(line) for line in project["dependencies"]]
    pins = locked()

    moved = [
        str(each)
        for each in ours
        if each.name in pins and not each.specifier.contains(pins[each.name])
    ]
    assert moved == []
    # What Letta's image lacks: compose/Dockerfile.letta adds it.
    assert {each.name for each in ours} - pins.keys() == {"cronsim", "msgspec"}
    with pytest.raises(PackageNotFoundError):
        version("arq")


def test_no_key_is_both_lettas_and_ours(letta: str) -> None:
    from letta import constants
    from letta.data_sources import redis_client

    ours = (CACHE_PREFIX, QUEUE_PREFIX)
    theirs = [
        value
        for name, value in vars(constants).items()
        if name.startswith("REDIS_") and isinstance(value, str)
    ]

    assert theirs
    assert not [value for value in theirs if value.startswith(ours)]
    # Each name that its client composes, too.
    source = Path(str(redis_client.__file__)).read_text()
    assert not any(f"{quote}{prefix}" in source for prefix in ours for quote in "\"'")
