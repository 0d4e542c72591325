"""Runs a master, its replica and Sentinels by TLS only, with passwords, on a server built with TLS."""

from __future__ import annotations

import shutil
import subprocess
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trustme
from redis.asyncio import Redis

from cache.connection.pool import open_pool
from cache.connection.shared_scripts import ScriptRedis
from settings import Settings
from tests.support.breakable import POOL
from tests.support.sentinel_faults import SENTINEL_PASSWORD, SERVICE, WatchedPair
from tests.support.workers import quick_settings

PASSWORD = "servers-secret"


def server_with_tls() -> str:
    """A server of the PATH that speaks TLS, which the one in the wheel does not. Skips without."""
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path is None:
            continue
        libraries = subprocess.run(["ldd", path], capture_output=True, text=True, check=False)
        if "libssl" in libraries.stdout:
            return path
    pytest.skip("no server with TLS on the PATH: apt-get install redis-server")


class SealedPair(WatchedPair):
    """As a `WatchedPair`; its servers and Sentinels have no port without TLS."""

    def __init__(self, home: Path) -> None:
        self.binary = server_with_tls()
        super().__init__(home)
        self.ca_file = home / "ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(self.ca_file))
        issued = authority.issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(str(home / "server.pem"))
        self._tls = ["port 0", f"tls-ca-cert-file {self.ca_file}", "tls-auth-clients no"]
        self._tls += [f"tls-{kind}-file {home / 'server.pem'}" for kind in ("cert", "key")]
        self._tls += ["tls-replication yes"]
        for node in (*self.pair, *self.sentinels):
            password = SENTINEL_PASSWORD if node in self.sentinels else PASSWORD
            node.client = Redis(
                host="127.0.0.1",
                port=node.port,
                password=password,
                protocol=2,
                ssl=True,
                ssl_ca_certs=str(self.ca_file),
            )

    async def start(self) -> None:
        first, second = self.pair
        common = ['save ""', "appendonly yes", "appendfsync always", "repl-diskless-sync-delay 0"]
        common += [f"requirepass {PASSWORD}", f"masterauth {PASSWORD}"]
        self._start(first, *common)
        self._start(second, *common, f"replicaof 127.0.0.1 {first.port}")
        for node in self.sentinels:
            self._start(
                node,
                f"requirepass {SENTINEL_PASSWORD}",
                f"sentinel sentinel-pass {SENTINEL_PASSWORD}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {first.port} 2",
                f"sentinel auth-pass {SERVICE} {PASSWORD}",
                f"sentinel down-after-milliseconds {SERVICE} 1000",
                f"sentinel failover-timeout {SERVICE} 3000",
            )
        await self._hurry()

    def _start(self, node: Any, *lines: str) -> None:
        node.binary, node.tls = self.binary, True
        # Of two lines with `port`, the last one counts.
        node.configure(*self._tls, f"tls-port {node.port}", *lines)
        node.start()

    @property
    def url(self) -> str:
        return super().url.replace("redis", "rediss", 1)

    def settings(self, **changes: Any) -> Settings:
        options: dict[str, Any] = {
            "redis_password": PASSWORD,
            "redis_sentinel_password": SENTINEL_PASSWORD,
            "redis_ca_file": self.ca_file,
            "worker_functions": "tests.support.jobs:add",
            **changes,
        }
        return quick_settings(options.pop("redis_url", self.url), **options)

    def client(self) -> AbstractAsyncContextManager[Any]:
        options = replace(POOL, sentinel_password=SENTINEL_PASSWORD, ca_file=self.ca_file)
        url = self.url.replace("://", f"://:{PASSWORD}@", 1)
        return open_pool(url, options, name="t", client_class=ScriptRedis)
