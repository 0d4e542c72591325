"""
Answers `letta-workers health` without the packages that the other commands import.

A container asks every few seconds, and redis-py, asyncio and pydantic would cost
it half a second of CPU each time. This probe speaks the protocol itself, and it
only ever says yes. What it cannot read, reach or confirm at once is left to the
command (worker/cli/commands.py), which says why.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

from hiredis import Reader, pack_command

from cache.connection.urls import Target, parse_url
from worker.keys import QueueKeys
from worker.terminal import printable

_PREFIX = "LETTA_"
_DEFAULT_URL = "redis://localhost:6379/0"
# Of each step. Longer waits are for the command, which knows the settings.
_TIMEOUT_S = 1.0


def answer(arguments: Sequence[str]) -> str | None:
    """Return the report of live workers, or None: ask the command."""
    if not set(arguments) <= {"--any", "--json"}:
        return None
    try:
        report = assess(_live_workers(), everywhere="--any" in arguments)
    except Exception:  # noqa: BLE001  (the command meets the same and reports it)
        return None
    return text_of(report, as_json="--json" in arguments) if report["healthy"] else None


def assess(workers: Sequence[dict[str, Any]], *, everywhere: bool) -> dict[str, Any]:
    """
    Return the health that a server's heartbeats show.

    `everywhere`: count the workers of all machines, not only of this one. `elsewhere` in the
    report is the number of those that were not counted.
    """
    host = socket.gethostname()
    counted = [worker for worker in workers if everywhere or worker.get("host") == host]
    return {
        "healthy": bool(counted),
        "redis": "ok",
        "host": host,
        "workers": counted,
        "elsewhere": len(workers) - len(counted),
    }


def text_of(report: dict[str, Any], *, as_json: bool) -> str:
    if as_json:
        return json.dumps(report, indent=2).replace("\x7f", "\\u007f")
    names = ", ".join(worker["worker_id"] for worker in report["workers"])
    names = names or f"none alive on {report['host']}; start them with `letta-workers run`"
    lines = ["redis: ok", f"workers: {names}"]
    if report["elsewhere"]:
        lines.append(f"elsewhere: {report['elsewhere']} (--any counts them)")
    return "\n".join(map(printable, lines))


def _live_workers() -> list[dict[str, Any]]:
    """Return the heartbeats of live workers, or raise anything at all."""
    values = _values()
    target = parse_url(values.get("redis_url", _DEFAULT_URL))
    login = (target.username, target.password)
    if not any(login):
        login = (values.get("redis_username"), values.get("redis_password"))
    keys = QueueKeys()
    with _connect(target, values) as connection:
        server = _Server(connection)
        if login[1]:
            server.ask("AUTH", *filter(None, login))
        server.ask("SELECT", target.db)
        ids = server.ask("ZRANGE", keys.workers, 0, -1)
        found = server.ask("MGET", *(keys.worker(id_.decode()) for id_ in ids)) if ids else []
    return [json.loads(heartbeat) for heartbeat in found if heartbeat is not None]


def _values() -> dict[str, str]:
    """
    Return the settings as texts, by lower-case field name: variables, then secrets files.

    Raises:
        ValueError: there is a `.env`, which only the settings parse.
    """
    if os.path.exists(".env"):  # noqa: PTH110  (pathlib takes longer to import than this to run)
        raise ValueError("settings in .env")
    values = dict(_secrets(os.environ.get(_PREFIX + "SECRETS_DIR", "/run/secrets")))
    values |= {name.lower(): value for name, value in os.environ.items() if value}
    prefix = _PREFIX.lower()
    return {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}


def _secrets(folder: str) -> Iterator[tuple[str, str]]:
    if os.path.isdir(folder):  # noqa: PTH112
        for name in os.listdir(folder):  # noqa: PTH208
            if name.lower().startswith(_PREFIX.lower()):
                with open(os.path.join(folder, name), encoding="utf-8") as file:  # noqa: PTH118, PTH123
                    yield name.lower(), file.read().strip()


def _connect(target: Target, values: dict[str, str]) -> socket.socket:
    if target.kind == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(_TIMEOUT_S)
        try:
            connection.connect(target.path)
        except OSError:
            connection.close()
            raise
        return connection
    if target.kind != "standalone":
        raise ValueError("only the command can reach Sentinels and embedded servers")
    connection = socket.create_connection(target.nodes[0], _TIMEOUT_S)
    return _encrypted(connection, target.nodes[0][0], values) if target.tls else connection


def _encrypted(connection: socket.socket, host: str, values: dict[str, str]) -> socket.socket:
    import ssl

    context = ssl.create_default_context(cafile=values.get("redis_ca_file"))
    if "redis_cert_file" in values:
        context.load_cert_chain(values["redis_cert_file"], values.get("redis_key_file"))
    return context.wrap_socket(connection, server_hostname=host)


class _Server:
    """Sends one command at a time and returns its reply, or raises it if it is an error."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._reader = Reader()

    def ask(self, *command: str | int) -> Any:
        self._connection.sendall(pack_command(command))  # type: ignore[arg-type]  # its stub knows one word
        while (reply := self._reader.gets()) is False:
            data = self._connection.recv(65_536)
            if not data:
                raise ConnectionError("the server closed the connection")
            self._reader.feed(data)
        if isinstance(reply, Exception):
            raise reply
        return reply
