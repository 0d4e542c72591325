"""The plug-in is installed whole or not at all, and says why not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

import letta_redis
from letta_redis.__main__ import main
from letta_redis.plugin.features import FEATURES
from letta_redis.plugin.install import findings
from letta_redis.plugin.seams import Feature, Seam, resolve
from settings import Settings

pytestmark = [pytest.mark.acceptance, pytest.mark.usefixtures("letta")]

SEAMS = [(feature, seam) for feature in FEATURES for seam in feature.seams]


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    yield
    letta_redis.uninstall()


Places = list[tuple[Any, str]]


@pytest.fixture
def places(letta: str) -> Places:
    return [resolve(seam.target) for _, seam in SEAMS]


def found_at(places: Places) -> list[Any]:
    """What every seam is right now."""
    return [owner.__dict__[name] for owner, name in places]


def test_every_seam_of_the_supported_release_is_known() -> None:
    assert [(f.seam.target, f.problem) for f in findings() if f.problem] == []


def test_installing_and_uninstalling_leaves_the_server_as_it_was(places: Places) -> None:
    before = found_at(places)

    installation = letta_redis.install(Settings())
    replaced = [now is not old for now, old in zip(found_at(places), before, strict=True)]
    again = letta_redis.install(Settings())
    letta_redis.uninstall()

    assert all(done for done, (_, seam) in zip(replaced, SEAMS, strict=True) if seam.replace)
    assert again is installation
    assert found_at(places) == before
    assert letta_redis.installed() is None


@pytest.mark.parametrize("seam", [seam for _, seam in SEAMS], ids=lambda seam: seam.target)
def test_an_unknown_seam_leaves_its_half_off(
    seam: Seam,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    places: Places,
) -> None:
    async def another(*_: Any) -> None: ...

    owner, name = resolve(seam.target)
    monkeypatch.setattr(owner, name, another)
    before = found_at(places)

    installation = letta_redis.install(Settings())

    # Both halves need some places.
    needing = {other.half for other, place in SEAMS if place.target == seam.target}
    off = {"cache", "queue"} if None in needing else needing
    assert installation.halves == {"cache", "queue"} - off
    kept = {place.target for other, place in SEAMS if other.half not in off}
    for (_, place), now, old in zip(SEAMS, found_at(places), before, strict=True):
        assert now is old or place.target in kept
    lines = [record.getMessage() for record in caplog.records if "seam_unknown" in record.msg]
    assert any(repr(seam.target) in line and "as without the plug-in" in line for line in lines)


def test_a_seam_that_is_gone_leaves_its_half_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("letta.services.agent_manager.decrypt_agent_secrets")

    installation = letta_redis.install(Settings())

    assert "cache" not in installation.halves


def test_a_replacement_that_fails_undoes_those_before_it(
    monkeypatch: pytest.MonkeyPatch, places: Places
) -> None:
    def failing(*_: Any) -> Any:
        raise RuntimeError("a fault of ours")

    before = found_at(places)
    broken = Feature("broken", "cache", (), attach=failing)
    monkeypatch.setattr("letta_redis.plugin.install.FEATURES", (*FEATURES, broken))

    installation = letta_redis.install(Settings())

    assert installation.halves == set()
    assert found_at(places) == before


def test_doctor_prints_every_seam(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--json"])

    report = json.loads(capsys.readouterr().out)
    assert ended.value.code == 0
    assert report["letta"] == "0.16.8"
    assert report["halves"]["cache"] is True
    assert [row["seam"] for row in report["seams"]] == [seam.target for _, seam in SEAMS]


def test_doctor_fails_where_a_seam_differs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr("letta.services.agent_manager.decrypt_agent_secrets")

    with pytest.raises(SystemExit) as ended:
        main(["doctor"])

    assert ended.value.code == 1
    assert "decrypt_agent_secrets" in capsys.readouterr().out
