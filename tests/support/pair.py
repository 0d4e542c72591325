"""A master and its replica behind one path, which break as servers do under running clients."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from redis import Redis

from tests.support.outages import FragileServer
from tests.support.servers import free_port
from tests.support.wait import eventually_sync

# How often each makes every value one to load again. After a restart, the replica that attaches
# again gives the master a new replication id.
LOSSES = {"restart": 2, "flush": 1, "failover": 1, "switch": 1}
_LAG_S = 0.5
_SYNC_S = 60.0


class Pair:
    """Clients dial `url`, which leads to the master. The methods return when they can dial again."""

    def __init__(self, home: Path, path: Path, rng: random.Random) -> None:
        self._home, self._path, self._rng = home, path, rng
        self._started: list[FragileServer] = []
        self._ports: dict[FragileServer, int] = {}
        self.url = f"unix://{path}"

    def start(self) -> None:
        self._master = self._new()
        self._path.symlink_to(self._master.path)
        self._replica = self._new()
        self._follow()

    def end(self) -> None:
        for server in self._started:
            server.end()

    def restart(self) -> None:
        """Kill the master and start it again. It has what it acknowledged, and a new run id."""
        self._master.kill()
        self._master.start()
        self._wait_until_linked()

    def flush(self) -> None:
        _ask(self._master, ["FLUSHALL"])

    def failover(self) -> None:
        """The master is killed, and a lagging replica takes over."""
        self._lag()
        self._path.unlink()
        self._master.end()
        self._started.remove(self._master)
        self._path.symlink_to(self._replica.path)
        self._master, self._replica = self._replica, self._new()
        self._follow()

    def switch(self) -> None:
        """A lagging replica takes over from a master that lives on, and is the replica now."""
        self._lag()
        self._path.unlink()
        # What Sentinel sends, too. Nobody writes to the one server while others read the other.
        change = ["REPLICAOF", "127.0.0.1", self._ports[self._replica]]
        _ask(self._master, ["MULTI"], change, ["CLIENT", "KILL", "TYPE", "normal"], ["EXEC"])
        self._path.symlink_to(self._replica.path)
        self._master, self._replica = self._replica, self._master
        self._wait_until_linked()

    def _new(self) -> FragileServer:
        port = free_port()
        home = self._home / str(port)
        home.mkdir()
        server = FragileServer(home, "--port", str(port), "--repl-diskless-sync-delay", "0")
        self._started.append(server)
        self._ports[server] = port
        server.start()
        return server

    def _follow(self) -> None:
        _ask(self._replica, ["REPLICAOF", "127.0.0.1", self._ports[self._master]])
        self._wait_until_linked()

    def _lag(self) -> None:
        """Let the replica miss what is written from here on."""
        _ask(self._replica, ["REPLICAOF", "NO", "ONE"])
        time.sleep(self._rng.uniform(0, _LAG_S))

    def _wait_until_linked(self) -> None:
        def linked() -> bool:
            (info,) = _ask(self._replica, ["INFO", "replication"])
            return bool(info["master_link_status"] == "up")

        eventually_sync(linked, deadline_s=_SYNC_S)


def _ask(server: FragileServer, *commands: list[Any]) -> list[Any]:
    """Send commands on a connection of their own, so that processes that are forked share none."""
    with Redis(unix_socket_path=server.path, protocol=2, single_connection_client=True) as client:
        return [client.execute_command(*command) for command in commands]


@contextmanager
def pair(rng: random.Random) -> Iterator[Pair]:
    with tempfile.TemporaryDirectory(prefix="pair-") as home:
        found = Pair(Path(home), Path(home) / "s", rng)
        try:
            found.start()
            yield found
        finally:
            found.end()
