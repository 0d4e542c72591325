"""ops/backup/: a server that runs is backed up, killed, loses its disk and is restored."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from arq.worker import func

from settings import load_settings
from tests.support.compose import ROOT, ValkeyService, run
from tests.support.engine import burst
from tests.support.queues import open_queue, stores_of
from worker import WorkerError

pytestmark = pytest.mark.acceptance

BACKUP, RESTORE = (str(ROOT / "ops" / "backup" / name) for name in ("backup.sh", "restore.sh"))

# Speaks `valkey-cli -p PORT --rdb -` where no valkey-cli is installed: the snapshot, and the mark of
# its end, which the real one cannot cut off a pipe.
_VALKEY_CLI = f"""#!{sys.executable}
import socket, sys
arguments = sys.argv[1:]
assert arguments[-2:] == ["--rdb", "-"], arguments
with socket.create_connection(("127.0.0.1", int(arguments[1])), 60) as server:
    file = server.makefile("rb")
    server.sendall(b"SYNC\\r\\n")
    line = b"\\n"
    while line == b"\\n":  # sent while the snapshot is made
        line = file.readline()
    if not line.startswith(b"$"):
        sys.exit(line.decode())
    sys.stdout.buffer.write(file.read(int(line[1:])))
    sys.stdout.buffer.write(b"0123456789abcdef0123456789abcdef01234567")
"""

WHOLE = b"REDIS0011" + b"\xff" + bytes(8)


@pytest.fixture
def cli(tmp_path: Path) -> Path:
    path = tmp_path / "valkey-cli"
    path.write_text(_VALKEY_CLI)
    path.chmod(0o755)
    return path


async def test_jobs_acknowledged_before_a_backup_outlive_the_disk(
    tmp_path: Path, cli: Path
) -> None:
    """A ledger outside of the server names what was acknowledged later, and may be lost."""
    ran: list[str] = []

    async def note(ctx: dict[str, Any], name: str) -> None:
        ran.append(name)

    before: set[str] = set()
    later: set[str] = set()
    first = ValkeyService("valkey-queue", tmp_path / "first")
    with first.running() as process:
        async with open_queue(load_settings(redis_url=first.url)) as queue:
            for n in range(200):
                await queue.enqueue("note", f"before-{n}")
                before.add(f"before-{n}")
            saving = asyncio.create_task(asyncio.to_thread(back_up, tmp_path, cli, first.port))
            while not saving.done():
                await queue.enqueue("note", f"later-{len(later)}")
                later.add(f"later-{len(later)}")
            await saving
            process.kill()
            process.wait()
            with suppress(WorkerError):
                await queue.enqueue("note", "refused")
    shutil.rmtree(tmp_path / "first")

    second = ValkeyService("valkey-queue", tmp_path / "second")
    restored = run([RESTORE, str(tmp_path / "backup"), str(tmp_path / "second")])
    assert restored.returncode == 0, restored.stderr
    with second.running():
        async with open_queue(load_settings(redis_url=second.url)) as queue:
            await burst(stores_of(queue).client, "arq:", [func(note, name="note")])
    assert before <= set(ran) <= before | later
    assert len(ran) == len(set(ran))


def back_up(home: Path, cli: Path, port: int) -> None:
    environ = {**os.environ, "VALKEY_CLI": f"{cli} -p {port}"}
    done = run([BACKUP, str(home / "backup")], environ)
    assert done.returncode == 0, done.stderr


def test_a_refused_backup_leaves_the_last_one_alone(tmp_path: Path) -> None:
    kept = tmp_path / "backup"
    kept.write_bytes(b"REDIS0011 of yesterday")
    environ = {**os.environ, "VALKEY_CLI": "echo NOPERM no permission"}
    done = run([BACKUP, str(kept)], environ)
    assert done.returncode == 1
    assert "NOPERM" in done.stderr
    assert kept.read_bytes() == b"REDIS0011 of yesterday"
    assert [path.name for path in tmp_path.iterdir()] == ["backup"]


@pytest.mark.parametrize("there", ["appendonlydir", "dump.rdb"])
def test_a_restore_overwrites_no_data(there: str, tmp_path: Path) -> None:
    backup, home = tmp_path / "backup", tmp_path / "data"
    backup.write_bytes(WHOLE)
    (home / there).mkdir(parents=True)
    done = run([RESTORE, str(backup), str(home)])
    assert done.returncode == 1
    assert "has data already" in done.stderr
    assert [path.name for path in home.iterdir()] == [there]


@pytest.mark.parametrize("text", [b"", b"NOAUTH", WHOLE[:-1], WHOLE[1:]])
def test_what_is_no_whole_snapshot_is_not_restored(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "backup").write_bytes(text)
    done = run([RESTORE, str(tmp_path / "backup"), str(tmp_path / "data")])
    assert (done.returncode, (tmp_path / "data").exists()) == (1, False)


def test_half_a_snapshot_is_no_backup(tmp_path: Path) -> None:
    environ = {**os.environ, "VALKEY_CLI": "printf REDIS0011-and-then-the-connection-broke"}
    done = run([BACKUP, str(tmp_path / "backup")], environ)
    assert done.returncode == 1
    assert "no whole snapshot" in done.stderr
    assert list(tmp_path.iterdir()) == []
