"""Servers that refuse every client, each for a reason of its own."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trustme

from cache.connection.pool import PoolOptions, open_pool
from tests.support.servers import raw_server, tls_in_front, valkey

# Name of the server -> words of the remedy that a client must be told.
REMEDIES = {
    "no password": "LETTA_REDIS_PASSWORD",
    "wrong password": "LETTA_REDIS_USERNAME",
    "needless password": "remove it",
    "user without rights": "allow it by ACL",
    "no such database": "/0",
    "TLS expected": "rediss://",
    "untrusted": "LETTA_REDIS_CA_FILE",
    "HTTP": "correct the host",
    "loading": "try again",
    "no Sentinel": "redis://",
    "not a cluster": "redis://",
    "cluster without password": "LETTA_REDIS_PASSWORD",
}


@asynccontextmanager
async def refusing_servers(home: Path, socket_path: str) -> AsyncIterator[dict[str, str]]:
    """Run them all; yield their URLs by the names of `REMEDIES`. `socket_path`: any Valkey's."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with (
        valkey(home / "closed", "--requirepass", "sesame") as closed,
        valkey(home / "open") as free,
    ):
        owner = f"redis://:sesame@127.0.0.1:{closed}/0"
        async with open_pool(owner, PoolOptions(), name="t") as client:
            await client.execute_command("ACL", "SETUSER", "weak", "on", ">w", "+ping", "+get")
        async with (
            tls_in_front(socket_path, context) as tls,
            raw_server(_says(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as http,
            raw_server(_says(b"-LOADING Valkey is loading the dataset in memory\r\n")) as loading,
        ):
            yield {
                "no password": f"redis://127.0.0.1:{closed}/0",
                "wrong password": f"redis://:hunter2@127.0.0.1:{closed}/0",
                "needless password": f"redis://:hunter2@127.0.0.1:{free}/0",
                "user without rights": f"redis://weak:w@127.0.0.1:{closed}/0",
                "no such database": f"redis://127.0.0.1:{free}/99",
                "TLS expected": f"redis://127.0.0.1:{tls}/0",
                "untrusted": f"rediss://127.0.0.1:{tls}/0",
                "HTTP": f"redis://127.0.0.1:{http}/0",
                "loading": f"redis://127.0.0.1:{loading}/0",
                "no Sentinel": f"redis+sentinel://127.0.0.1:{free}/main",
                "not a cluster": f"redis+cluster://127.0.0.1:{free}",
                "cluster without password": f"redis+cluster://127.0.0.1:{closed}",
            }


def _says(reply: bytes) -> Callable[[Any, Any], Awaitable[None]]:
    async def handle(reader: Any, writer: Any) -> None:
        while await reader.read(65_536):
            writer.write(reply)
            await writer.drain()

    return handle
