"""Runs a master, its replica and Sentinels as real processes, ready for a failover."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cache.connection.pool import OUTAGE, PoolOptions, open_pool
from tests.support.servers import valkey
from tests.support.wait import eventually

SERVICE = "mine"
_SENTINELS = 3
_QUORUM = 2


@dataclass(slots=True)
class Watched:
    """One replicated server. The clients connect to the processes directly, not by Sentinel."""

    master: Any
    replica: Any
    sentinels: list[Any]
    url: str

    async def replicated(self) -> None:
        """Return when everything written so far is on the replica."""
        # WAIT covers the writes of its own connection, so write once more on this one.
        await self.master.set("replicated-up-to-here", "1")

        async def is_there() -> bool:
            return bool(await self.master.execute_command("WAIT", 1, 1000) >= 1)

        await eventually(is_there, deadline_s=60)

    async def promoted(self) -> bool:
        with suppress(*OUTAGE):
            return bool((await self.replica.info("replication"))["role"] == "master")
        # Sentinels close the connections of a server whose role changes.
        return False


@asynccontextmanager
async def watched_servers(home: Path) -> AsyncIterator[Watched]:
    """Yield once the replica is in sync and each Sentinel knows it and the other Sentinels."""
    async with AsyncExitStack() as stack:
        quick = ("--appendonly", "yes", "--repl-diskless-sync-delay", "0")
        # A replaced master that does not know it yet must not accept writes, which would be lost.
        alone = ("--min-replicas-to-write", "1")
        master = stack.enter_context(valkey(home / "master", *quick, *alone))
        of_master = ("--replicaof", f"127.0.0.1 {master}")
        replica = stack.enter_context(valkey(home / "replica", *quick, *of_master))
        ports = []
        for number in range(_SENTINELS):
            directory = home / f"sentinel{number}"
            directory.mkdir()
            conf = directory / "sentinel.conf"
            conf.write_text(
                f"sentinel monitor {SERVICE} 127.0.0.1 {master} {_QUORUM}\n"
                f"sentinel down-after-milliseconds {SERVICE} 1000\n"
                f"sentinel failover-timeout {SERVICE} 10000\n"
                "bind 127.0.0.1\n"
            )
            ports.append(stack.enter_context(valkey(directory, str(conf), "--sentinel")))
        clients = [
            await stack.enter_async_context(
                open_pool(f"redis://127.0.0.1:{port}/0", PoolOptions(), name="t")
            )
            for port in (master, replica, *ports)
        ]
        nodes = ",".join(f"127.0.0.1:{port}" for port in ports)
        url = f"redis+sentinel://{nodes}/{SERVICE}/0"
        found = Watched(clients[0], clients[1], clients[2:], url)
        await eventually(lambda: _is_ready(found), deadline_s=60)
        yield found


@contextmanager
def shared_sentinel(home: Path) -> Iterator[str]:
    """Run one server and a Sentinel that names it, for several tests. Yield the URL."""
    (home / "sentinel").mkdir()
    conf = home / "sentinel" / "sentinel.conf"
    with valkey(home / "master") as master:
        conf.write_text(f"sentinel monitor {SERVICE} 127.0.0.1 {master} 1\nbind 127.0.0.1\n")
        with valkey(conf.parent, str(conf), "--sentinel") as port:
            yield f"redis+sentinel://127.0.0.1:{port}/{SERVICE}/0"


async def _is_ready(found: Watched) -> bool:
    replication = await found.replica.info("replication")
    if replication.get("master_link_status") != "up":
        return False
    for sentinel in found.sentinels:
        replicas = await sentinel.sentinel_slaves(SERVICE)
        if len(await sentinel.sentinel_sentinels(SERVICE)) != _SENTINELS - 1 or len(replicas) != 1:
            return False
        if replicas[0]["flags"] != "slave" or replicas[0]["master-link-status"] != "ok":
            return False
    return True
