"""Files of other users of the machine in the working directory are neither read nor run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from cache.connection.urls import parse_url
from settings import Settings, SettingsError, load_settings
from worker.app.functions import load_coroutine

pytestmark = pytest.mark.integration

ANOTHER = 4321  # a user that is not this one
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
MODULE = "async def job(ctx): ...\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Change into a working directory of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def env_file(here: Path, *, mode: int = 0o600, owner: int | None = None) -> Path:
    path = here / ".env"
    path.write_text("LETTA_WORKER_COUNT=7\n")
    path.chmod(mode)
    if owner is not None:
        os.chown(path, owner, owner)
    return path


# -- .env -------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640, 0o664])
def test_an_own_env_file_is_read(here: Path, mode: int) -> None:
    env_file(here, mode=mode)
    with structlog.testing.capture_logs() as logs:
        assert load_settings().worker_count == 7
    assert logs == []


def _of_another_user(here: Path) -> None:
    env_file(here, owner=ANOTHER)


def _writable_by_others(here: Path) -> None:
    env_file(here, mode=0o646)


def _writable_by_another_group(here: Path) -> None:
    os.chown(env_file(here, mode=0o660), -1, ANOTHER)


def _a_link_of_another_user(here: Path) -> None:
    env_file(here).rename(here / "mine")
    (here / ".env").symlink_to(here / "mine")
    os.chown(here / ".env", ANOTHER, ANOTHER, follow_symlinks=False)


def _a_link_to_another_users_file(here: Path) -> None:
    env_file(here, owner=ANOTHER).rename(here / "theirs")
    (here / ".env").symlink_to(here / "theirs")


@as_root
@pytest.mark.parametrize(
    "prepare",
    [
        _of_another_user, _writable_by_others, _writable_by_another_group,
        _a_link_of_another_user, _a_link_to_another_users_file,
    ],
)  # fmt: skip
@pytest.mark.parametrize("how", [Settings, load_settings])
def test_a_foreign_env_file_is_ignored_and_logged(here: Path, prepare: object, how: object) -> None:
    assert callable(prepare)
    assert callable(how)
    prepare(here)
    with structlog.testing.capture_logs() as logs:
        assert how().worker_count == Settings.model_fields["worker_count"].default
    (line,) = logs
    assert line["event"] == "settings.env_file_ignored"
    assert line["path"] == str(here / ".env")


# -- modules of the working directory -------------------------------------------------------


def test_a_module_of_an_own_working_directory_is_found(here: Path) -> None:
    (here / "mine_to_load.py").write_text(MODULE)
    assert load_coroutine("mine_to_load:job", "x").__name__ == "job"


@as_root
@pytest.mark.parametrize("fault", ["owner", "mode"])
def test_a_module_of_a_foreign_working_directory_is_not_run(here: Path, fault: str) -> None:
    (here / "planted.py").write_text(f"open({str(here / 'ran')!r}, 'w')\n" + MODULE)
    if fault == "owner":
        os.chown(here, ANOTHER, ANOTHER)
    else:
        here.chmod(0o1777)  # as /tmp is
    with pytest.raises(SettingsError, match="the working directory is not searched"):
        load_coroutine("planted:job", "LETTA_WORKER_FUNCTIONS")
    assert not (here / "ran").exists()


def test_a_child_runs_no_module_of_the_working_directory(here: Path) -> None:
    for name in ("worker", "settings", "cache", "asyncio", "redis", "letta_redis"):
        (here / f"{name}.py").write_text(f"open({str(here / 'ran')!r}, 'w')\n")
    command = Path(sys.executable).parent / "letta-workers"
    environ = {**os.environ, "LETTA_REDIS_URL": "embedded://"}
    with subprocess.Popen(
        [command, "run", "--count", "1"], cwd=here, env=environ, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stderr is not None
        try:
            for line in running.stderr:
                if "worker.started" in line or (here / "ran").exists():
                    break
        finally:
            running.terminate()
            running.communicate(timeout=120)
    assert not (here / "ran").exists()


# -- the server's password ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://host:1/0", "redis://us%2Fer:p%40ss@host:1/0"),
        ("rediss://host", "rediss://us%2Fer:p%40ss@host"),
        ("redis://host?db=1", "redis://us%2Fer:p%40ss@host?db=1"),
        ("unix:///run/valkey.sock", "unix://us%2Fer:p%40ss@/run/valkey.sock"),
        ("rediss+sentinel://a,b:2/mine/0", "rediss+sentinel://us%2Fer:p%40ss@a,b:2/mine/0"),
        ("redis://own:word@host", "redis://own:word@host"),
        ("embedded://", "embedded://"),
    ],
)
@pytest.mark.parametrize("server", ["redis", "cache_redis"])
def test_a_secrets_file_gives_a_server_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, expected: str, server: str
) -> None:
    other = "cache_redis" if server == "redis" else "redis"
    (tmp_path / f"letta_{server}_password").write_text("p@ss\n")
    monkeypatch.setenv("LETTA_SECRETS_DIR", str(tmp_path))
    given = {f"{server}_url": url, f"{server}_username": "us/er", f"{other}_url": "redis://other:1"}
    found = load_settings(**given)
    assert getattr(found, f"{server}_url") == expected
    assert getattr(found, f"{other}_url") == "redis://other:1"
    assert "p@ss" not in repr(found)
    assert "p%40ss" not in repr(found)
    if expected != url:
        target = parse_url(getattr(found, f"{server}_url"))
        assert (target.username, target.password) == ("us/er", "p@ss")
