"""
Makes an embedded server a cluster of one node: `embedded+cluster://`, for tests.

A node needs two TCP ports on loopback: one for clients, with a random password, and one
for other nodes, without any. So, unlike `embedded://`, other users of the machine can reach it.
"""

from __future__ import annotations

import secrets
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hiredis

from cache.errors import EmbeddedServerError

URL = "embedded+cluster://"
_DEADLINE_S = 20.0


def node_options() -> dict[str, str]:
    """The server's command line options."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        port, bus = (str(each.getsockname()[1]) for each in taken)
    return {"bind": "127.0.0.1", "port": port, "cluster-enabled": "yes", "cluster-port": bus}


def form(socket_path: Path, port: str) -> str:
    """
    Give the node a password and all slots. Returns the URL of the cluster.

    Raises:
        EmbeddedServerError: it does not serve in time.
    """
    password = secrets.token_urlsafe(24)
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(_DEADLINE_S)
        server.connect(str(socket_path))
        reader = hiredis.Reader()

        def ask(*words: str) -> Any:
            server.sendall(hiredis.pack_command(words))  # type: ignore[arg-type]
            while (reply := reader.gets()) is False:
                reader.feed(server.recv(65_536))
            if isinstance(reply, Exception):
                raise EmbeddedServerError(f"{URL} failed at {words[0]}: {reply}")
            return reply

        ask("CONFIG", "SET", "requirepass", password)
        ask("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
        deadline = time.monotonic() + _DEADLINE_S
        while b"cluster_state:ok" not in ask("CLUSTER", "INFO"):
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"{URL} serves no slot after {_DEADLINE_S:.0f} s")
            time.sleep(0.005)
    return f"redis+cluster://:{password}@127.0.0.1:{port}"
