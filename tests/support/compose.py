"""Reads compose/compose.yaml and runs its services as plain processes."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cache.connection.embedded import server_binary
from tests.support.servers import answers, free_port, valkey
from tests.support.wait import eventually_sync

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "compose"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_SIZES = {"k": 2**10, "m": 2**20, "g": 2**30}
_SECONDS = {"s": 1, "m": 60, "h": 3600}

# Speaks `valkey-cli -e [-p PORT] [--user USER --pass PASSWORD] ping` where no valkey-cli is installed: with
# -e an error reply is exit code 1, as is a server that is not there.
_VALKEY_CLI = f"""#!{sys.executable}
import socket, sys
arguments = sys.argv[1:]
port = int(arguments[arguments.index("-p") + 1]) if "-p" in arguments else 6379
if "-e" not in arguments or arguments[-1] != "ping":
    sys.exit("this stand-in only knows: valkey-cli -e [-p PORT] [--user U --pass P] ping")
try:
    with socket.create_connection(("127.0.0.1", port), 2) as server:
        file = server.makefile("rb")
        if "--user" in arguments:
            user, password = (arguments[arguments.index(o) + 1] for o in ("--user", "--pass"))
            server.sendall(f"AUTH {{user}} {{password}}\\r\\n".encode())
            file.readline()  # as the real one, it goes on without
        server.sendall(b"PING\\r\\n")
        reply = file.readline()
except OSError as exc:
    sys.exit(f"Could not connect: {{exc}}")
print(reply.decode().strip())
sys.exit(0 if reply.startswith(b"+PONG") else 1)
"""


def load(environ: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the file with its variables filled in from `environ` or their defaults."""
    values = environ if environ is not None else {"HOME": "/home/operator"}

    def fill(match: re.Match[str]) -> str:
        return values.get(match[1]) or match[2] or ""

    text = _VARIABLE.sub(fill, (COMPOSE / "compose.yaml").read_text())
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded


@functools.cache
def services() -> dict[str, dict[str, Any]]:
    """The services with all defaults, read once. Nobody changes them."""
    found: dict[str, dict[str, Any]] = load()["services"]
    return found


def size_bytes(text: str) -> int:
    """Return `512mb`, `1g` or `384m` in bytes."""
    match = re.fullmatch(r"(\d+)([kmg])b?", text.lower())
    assert match, text
    return int(match[1]) * _SIZES[match[2]]


def seconds(text: str) -> int:
    """Return `45s` or `2m` in seconds."""
    return int(text[:-1]) * _SECONDS[text[-1]]


def configuration(service: Mapping[str, Any]) -> Path:
    """Return the host's file that a Valkey service's command names inside its container."""
    inside = service["command"][1]
    for volume in service["volumes"]:
        source, target = str(volume).split(":")[:2]
        if target == inside:
            return (COMPOSE / source).resolve()
    raise AssertionError(f"{inside} is mounted by no volume")


def directive(path: Path, name: str) -> str:
    """Return the value of a directive in a Valkey configuration file."""
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return value.strip()
    raise AssertionError(f"{name} is not in {path.name}")


def made_secrets(home: Path) -> Path:
    """What make_secrets.sh makes."""
    shutil.copy2(COMPOSE / "make_secrets.sh", home)
    made = run([str(home / "make_secrets.sh")])
    assert made.returncode == 0, made.stderr
    return home / "secrets"


@contextmanager
def server_of(
    name: str, home: Path, secrets: Path, *options: str, users: str | None = None
) -> Iterator[int]:
    """A server with the configuration of `queue` or `cache`, and its users of `secrets`, or others."""
    conf = home / f"valkey-{name}.conf"
    text = (COMPOSE / conf.name).read_text()
    assert f"/run/secrets/valkey-{name}-users" in text
    text = text.replace(
        f"/run/secrets/valkey-{name}-users", f"{secrets}/valkey-{users or name}-users"
    )
    conf.write_text(text)
    with valkey(home / f"server-{name}", str(conf), *options) as port:
        yield port


class ValkeyService:
    """Runs a Valkey service's command and probe on the test's own port and directory."""

    def __init__(self, name: str, home: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._service = services()[name]
        self._home = home
        self._options = options
        home.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """Run the service until the block ends, then send TERM."""
        program, _, *rest = self._service["command"]
        assert program == "valkey-server"
        overrides = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._home)]
        command = [str(server_binary()), str(configuration(self._service)), *rest, *overrides]
        with (self._home / "server.log").open("ab") as log:
            process = subprocess.Popen(
                [*command, *self._options], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        try:
            eventually_sync(lambda: process.poll() is not None or answers(self.port))
            assert process.poll() is None, (self._home / "server.log").read_text()
            yield process
        finally:
            process.terminate()
            process.wait(20)

    def probe(self) -> int:
        """Run the service's health check. Return its exit code."""
        kind, program, *arguments = self._service["healthcheck"]["test"]
        assert kind == "CMD"
        real = shutil.which(program)
        if real is None:
            stand_in = self._home / program
            stand_in.write_text(_VALKEY_CLI)
            stand_in.chmod(0o755)
            real = str(stand_in)
        return run([real, "-p", str(self.port), *arguments]).returncode


def run(
    command: list[str], environ: Mapping[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run a command with only the given environment, and a time limit."""
    return subprocess.run(
        command,
        cwd=cwd,
        env=dict(environ) if environ is not None else dict(os.environ),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
