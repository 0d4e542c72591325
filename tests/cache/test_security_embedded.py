"""embedded://: a directory that other users of the machine can reach is refused."""

from __future__ import annotations

import fcntl
import os
import socketserver
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cache.connection import embedded
from cache.errors import EmbeddedServerError

pytestmark = pytest.mark.integration

ANOTHER = 4321  # a user that is not this one
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A private directory. Servers that the test left running are stopped after it."""
    before = set(embedded.running)
    yield tmp_path
    for url in set(embedded.running) - before:
        embedded.running.pop(url).stop()


def refused(directory: Path, match: str) -> None:
    with pytest.raises(EmbeddedServerError, match=match):
        embedded.acquire(f"embedded://{directory}")


@contextmanager
def answering(path: Path) -> Iterator[None]:
    """A foreign server that answers as ours would."""

    class Pong(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(64)
            self.request.sendall(b"+PONG\r\n")

    with socketserver.ThreadingUnixStreamServer(str(path), Pong) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


def make(directory: Path, mode: int = 0o700) -> Path:
    directory.mkdir()
    directory.chmod(mode)
    return directory


def test_a_new_directory_is_closed_to_others(home: Path) -> None:
    before = os.umask(0)
    try:
        embedded.acquire(f"embedded://{home}/a/data")
    finally:
        os.umask(before)
    places = [home / "a" / "data", *(home / "a" / "data").rglob("*")]
    assert {place.name for place in places} >= {"owner.lock", "valkey.log", "appendonlydir"}
    open_to_others = [p for p in places if stat.S_IMODE(p.stat().st_mode) & 0o077]
    assert open_to_others == []


@pytest.mark.parametrize("mode", [0o770, 0o777, 0o1777, 0o720, 0o702])
def test_a_directory_that_others_may_write_is_refused(home: Path, mode: int) -> None:
    refused(make(home / "data", mode), "chmod 700")
    assert list((home / "data").iterdir()) == []


@pytest.mark.parametrize("mode", [0o755, 0o750, 0o701, 0o711, 0o704])
def test_a_directory_that_others_may_read_gets_mode_0700(home: Path, mode: int) -> None:
    make(home / "data", mode)
    assert embedded.acquire(f"embedded://{home}/data")
    assert stat.S_IMODE((home / "data").stat().st_mode) == 0o700


def test_a_readable_directory_of_other_files_is_unchanged(home: Path) -> None:
    (make(home / "data", 0o755) / "notes.txt").write_text("mine")
    refused(home / "data", "chmod 700")
    assert stat.S_IMODE((home / "data").stat().st_mode) == 0o755


@as_root
def test_a_directory_of_another_user_is_refused(home: Path) -> None:
    os.chown(make(home / "data"), ANOTHER, ANOTHER)
    refused(home / "data", "another user")
    assert list((home / "data").iterdir()) == []


def test_a_link_to_a_directory_is_refused(home: Path) -> None:
    make(home / "real")
    (home / "data").symlink_to(home / "real")
    refused(home / "data", "is a link")
    assert list((home / "real").iterdir()) == []


def test_a_file_is_refused(home: Path) -> None:
    (home / "data").write_text("")
    refused(home / "data", "cannot be used")


@pytest.mark.parametrize("name", ["owner.lock", "valkey.log", "appendonlydir/x.aof", "other"])
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_link_inside_is_refused_and_its_target_kept(home: Path, name: str, kind: str) -> None:
    target = home / "precious"
    target.write_text("precious")
    connection = make(home / "data") / name
    connection.parent.mkdir(exist_ok=True)
    if kind == "symbolic":
        connection.symlink_to(target)
    else:
        connection.hardlink_to(target)
    refused(home / "data", "link")
    assert target.read_text() == "precious"


def test_a_linked_directory_inside_is_refused(home: Path) -> None:
    (make(home / "data") / "appendonlydir").symlink_to(make(home / "elsewhere"))
    refused(home / "data", "link")
    assert list((home / "elsewhere").iterdir()) == []


@as_root
def test_a_file_of_another_user_inside_is_refused(home: Path) -> None:
    lock = make(home / "data") / "owner.lock"
    lock.write_text("/tmp/theirs.sock")
    os.chown(lock, ANOTHER, ANOTHER)
    refused(home / "data", "another user")


@pytest.mark.parametrize(("mode", "fine"), [(0o757, False), (0o1777, True), (0o755, True)])
def test_a_directory_below_one_that_others_write_is_refused(
    home: Path, mode: int, fine: bool
) -> None:
    make(home / "above", mode)
    if fine:
        assert embedded.acquire(f"embedded://{home}/above/data")
    else:
        refused(home / "above" / "data", "others may write to it")


@as_root
@pytest.mark.parametrize("kind", ["directory", "link"])
def test_a_directory_below_one_of_another_user_is_refused(home: Path, kind: str) -> None:
    above = home / "above"
    if kind == "directory":
        make(above, 0o755)
    else:
        make(home / "real", 0o755)
        above.symlink_to(home / "real")
    os.chown(above, ANOTHER, ANOTHER, follow_symlinks=False)
    refused(above / "data", "another user")


@as_root
@pytest.mark.parametrize("whose", ["socket", "directory"])
def test_a_server_of_another_user_is_not_joined(
    home: Path, whose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_START_DEADLINE_S", 0.2)
    directory, theirs = make(home / "data"), make(home / "s")
    path = theirs / "fake.sock"
    with (directory / "owner.lock").open("w") as lock, answering(path):
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.chown(path if whose == "socket" else theirs, ANOTHER, ANOTHER)
        lock.write(str(path))
        lock.flush()
        refused(directory, "does not answer")


def test_a_running_server_of_ours_is_still_joined(home: Path) -> None:
    url = f"embedded://{home}/data"
    first = embedded.acquire(url)
    server = embedded.running.pop(url)  # as if another process had it
    try:
        assert embedded.acquire(url) == first
        assert embedded.running[url].process is None
    finally:
        embedded.release(url)
        server.stop()
