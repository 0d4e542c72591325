"""embedded://: a private server that keeps its data and never outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cache.connection import embedded
from cache.connection.pool import PoolOptions, open_pool
from cache.connection.urls import parse_url
from cache.errors import EmbeddedServerError, UnsupportedRedisURL
from tests.support.wait import eventually_sync

pytestmark = pytest.mark.integration

OPTIONS = PoolOptions()

OWNER = """
import sys, time
from cache.connection import embedded
url = embedded.acquire(sys.argv[1])
server = next(iter(embedded.running.values()))
print(server.process.pid if server.process else 0, url, flush=True)
sys.stdin.read()
"""


def start_owner(url: str) -> tuple[subprocess.Popen[str], int, str]:
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    pid, real_url = process.stdout.readline().split()
    return process, int(pid), real_url


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # A zombie has ended; its parent has not collected it.
    return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"


async def test_a_directory_keeps_data_between_runs(tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}/data"
    for round_ in (1, 2):
        async with open_pool(url, OPTIONS, name="t") as client:
            assert await client.incr("rounds") == round_
            config = await client.config_get("maxmemory-policy")
            assert config["maxmemory-policy"] == "noeviction"


async def test_users_of_one_process_share_a_server_and_the_last_stops_it() -> None:
    async with open_pool("embedded://", OPTIONS, name="a") as first:
        async with open_pool("embedded://", OPTIONS, name="b") as second:
            await first.set("shared", "1")
            assert await second.get("shared") == b"1"
        assert await first.get("shared") == b"1"


@pytest.mark.parametrize("name", ["t" * 120, "a b", "a#b", "a%41", "a?b"])
def test_any_temporary_folder_will_do(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    url = f"embedded://{tmp_path}/data"  # other tests share the server without a directory
    path = parse_url(embedded.acquire(url)).path
    try:
        assert embedded.answers(Path(path))
        assert Path(path).parent.stat().st_mode & 0o077 == 0
    finally:
        embedded.release(url)
    assert not Path(path).parent.exists()


def test_a_socket_without_a_usable_folder_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**options: str) -> str:
        raise PermissionError

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(EmbeddedServerError, match="TMPDIR"):
        embedded.acquire(f"embedded://{tmp_path}/data")


def test_a_url_with_too_long_a_socket_path_is_refused() -> None:
    with pytest.raises(UnsupportedRedisURL, match="107 bytes"):
        parse_url(f"unix:///{'s' * 107}")
    assert parse_url(f"unix:///{'s' * 106}").path == "/" + "s" * 106


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_ends_when_its_owner_is_killed(end: signal.Signals) -> None:
    owner, pid, url = start_owner("embedded://")
    assert not is_gone(pid)
    owner.send_signal(end)
    owner.communicate()
    eventually_sync(lambda: is_gone(pid))
    assert not embedded.answers(Path(url.removeprefix("unix://")))


def test_a_second_process_joins_the_directorys_server(tmp_path: Path) -> None:
    url = f"embedded://{tmp_path}/data"
    owner, _, first = start_owner(url)
    guest, guest_server, second = start_owner(url)
    assert second == first
    assert guest_server == 0
    guest.communicate()
    assert embedded.answers(Path(first.removeprefix("unix://")))
    owner.communicate()
    assert owner.returncode == 0


def test_a_directory_that_cannot_be_used_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedServerError, match="cannot be used"):
        embedded.acquire(f"embedded://{tmp_path}/file/data")


def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "appendonlydir").mkdir(parents=True)
    (data / "appendonlydir" / "appendonly.aof.manifest").write_text("not a manifest\n")
    with pytest.raises(EmbeddedServerError, match="ended with code 1"):
        embedded.acquire(f"embedded://{data}")
