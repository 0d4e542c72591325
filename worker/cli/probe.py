"""
Answers `letta-workers health` without the packages that the other commands import.

A container asks every few seconds, also while its server is away, and redis-py, asyncio and
pydantic would cost it half a second of CPU each time. This probe speaks the protocol itself. The
command (worker/cli/health.py) answers where the settings are wrong, where an embedded server's
directory is not to be trusted, and where no Sentinel names a master.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hiredis import HiredisError, Reader, ReplyError, pack_command

from cache.connection.refusals import reason_of, refusal_of
from cache.connection.urls import Target, parse_url, redacted
from cache.errors import RedisRefused, RedisUnavailable
from worker.cli.probe_settings import probe_settings
from worker.keys import QUEUE_TAG, QueueKeys
from worker.terminal import printable

_DEFAULT_URL = "redis://localhost:6379/0"
# Of each step, as of the command's attempt.
_TIMEOUT_S = 3.0
# Of each Sentinel, which are asked one after the other.
_SENTINEL_TIMEOUT_S = 0.5

Values = Mapping[str, str]
Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """What `health` prints, and its exit code. An error is for standard error."""

    text: str
    code: int = 0
    is_error: bool = False


def answer(arguments: Sequence[str]) -> ProbeAnswer | None:
    """Return the workers' health, or why it is unknown; None: ask the command."""
    if not set(arguments) <= {"--any", "--json"}:
        return None
    as_json = "--json" in arguments
    try:
        values = probe_settings()
        url = values.get("redis_url", _DEFAULT_URL)
        try:
            workers = _live_workers(_target_of(url), values)
        except RedisUnavailable as exc:
            return unknown(exc, as_json=as_json)
        except (OSError, HiredisError) as exc:
            return unknown(_error_of(exc, url), as_json=as_json)
        report = assess(workers, everywhere="--any" in arguments)
    except Exception:  # noqa: BLE001  (the command meets the same and reports it)
        return None
    return ProbeAnswer(text_of(report, as_json=as_json), 0 if report["healthy"] else 1)


def _error_of(exc: Exception, url: str) -> RedisUnavailable:
    refusal = refusal_of(exc)
    if refusal is not None and refusal.lasting:
        return RedisRefused(redacted(url), str(refusal))
    return RedisUnavailable(redacted(url), reason_of(exc, url))


def unknown(exc: RedisUnavailable, *, as_json: bool) -> ProbeAnswer:
    """The answer when the server cannot be asked."""
    if as_json:
        report = {"healthy": False, "redis": str(exc), "host": socket.gethostname()}
        return ProbeAnswer(_dump({**report, "workers": None, "elsewhere": None}), 1)
    text = f"error: {exc} (so it is unknown whether workers are alive)"
    return ProbeAnswer(printable(text), 1, is_error=True)


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
        return _dump(report)
    names = ", ".join(worker["worker_id"] for worker in report["workers"])
    names = names or f"none alive on {report['host']}; start them with `letta-workers run`"
    lines = ["redis: ok", f"workers: {names}"]
    if report["elsewhere"]:
        lines.append(f"elsewhere: {report['elsewhere']} (--any counts them)")
    return "\n".join(map(printable, lines))


def _dump(report: dict[str, Any]) -> str:
    return json.dumps(report, indent=2).replace("\x7f", "\\u007f")


def _target_of(url: str) -> Target:
    """
    Return where to connect to. An embedded server is joined, never started: it would end with us.

    Raises:
        UnsupportedRedisURL, EmbeddedServerError: the command meets the same and reports it.
        RedisUnavailable: no other process has the embedded server.
    """
    target = parse_url(url)
    if target.kind != "embedded":
        return target
    from cache.connection.private import running_socket

    directory = url.partition("://")[2]
    if not directory.strip("/"):
        remedy = "give it a directory, as embedded:///directory"
        raise RedisRefused(url, f"only the process that started it can reach it; {remedy}")
    path = running_socket(directory)
    if path is None:
        raise RedisUnavailable(redacted(url), "no process runs it; start `letta-workers run`")
    return Target("unix", path=path)


def _live_workers(target: Target, values: Values) -> list[dict[str, Any]]:
    """
    Return the heartbeats of live workers.

    Raises:
        OSError, HiredisError: the server is away, or refuses.
        ValueError: no Sentinel names a master.
    """
    failure: OSError | None = None
    nodes = [_master(target, values)] if target.kind == "sentinel" else target.nodes
    for address in nodes or [("", 0)]:
        try:
            return _heartbeats(target, address, values)
        except OSError as exc:
            failure = exc
    assert failure is not None  # noqa: S101
    raise failure


def _master(target: Target, values: Values) -> Address:
    """
    Return the address of the newest configuration, as `Sentinels.discover_master` does.

    Raises:
        ValueError: no Sentinel names a master that it takes for alive. The command says why.
    """
    states = []
    for node in target.nodes:
        try:
            with _connect(target, node, values, _SENTINEL_TIMEOUT_S) as connection:
                server = _Server(connection)
                if password := values.get("redis_sentinel_password"):
                    name = values.get("redis_sentinel_username")
                    server.ask("AUTH", *filter(None, (name, password)))
                found = server.ask("SENTINEL", "MASTER", target.service)
        except (OSError, HiredisError):
            continue
        state = dict(zip(found[::2], found[1::2], strict=True))
        flags = state[b"flags"].split(b",")
        if b"master" in flags and not {b"s_down", b"o_down"} & set(flags):
            states.append(state)
    newest = max(states, key=lambda state: int(state[b"config-epoch"]))
    return newest[b"ip"].decode(), int(newest[b"port"])


def _heartbeats(
    target: Target, address: Address, values: Values, *, moved: bool = False
) -> list[dict[str, Any]]:
    is_cluster = target.kind == "cluster"
    keys = QueueKeys(f"{QUEUE_TAG}:") if is_cluster else QueueKeys()
    with _connect(target, address, values) as connection:
        server = _Server(connection)
        _log_in(server, target, values)
        if is_cluster:
            server.ask("CLUSTER", "SLOTS")  # refused by a server that is no cluster
        try:
            ids = server.ask("ZRANGE", keys.workers, 0, -1)
            found = server.ask("MGET", *(keys.worker(id_.decode()) for id_ in ids)) if ids else []
        except ReplyError as exc:
            if not is_cluster or not str(exc).startswith("MOVED "):
                raise
            if moved:
                raise ConnectionError("the cluster is moving the queue's slot") from None
            host, _, port = str(exc).split()[2].rpartition(":")
            return _heartbeats(target, (host or address[0], int(port)), values, moved=True)
    return [json.loads(heartbeat) for heartbeat in found if heartbeat is not None]


def _log_in(server: _Server, target: Target, values: Values) -> None:
    login = (target.username, target.password)
    if not any(login):
        login = (values.get("redis_username"), values.get("redis_password"))
    if login[1]:
        server.ask("AUTH", *filter(None, login))
    if target.db:
        server.ask("SELECT", target.db)


def _connect(
    target: Target, address: Address, values: Values, timeout_s: float | None = None
) -> socket.socket:
    timeout_s = timeout_s or _TIMEOUT_S
    if target.kind == "unix":
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        try:
            connection.connect(target.path)
        except OSError:
            connection.close()
            raise
        return connection
    connection = socket.create_connection(address, timeout_s)
    return _encrypted(connection, address[0], values) if target.tls else connection


def _encrypted(connection: socket.socket, host: str, values: Values) -> socket.socket:
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
                raise ConnectionError("Connection closed by server")
            self._reader.feed(data)
        if isinstance(reply, Exception):
            raise reply
        return reply
