"""Runs podman and podman-compose on a store of their own, apart from the machine's containers."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

COMMAND_S = 900.0
# Where podman looks for the programs that it starts.
_HELPERS = [
    Path(f"/usr{local}/{lib}/podman") for local in ("", "/local") for lib in ("lib", "libexec")
]


class Failed(Exception):
    """A command ended with an error, or a step of the drill did not hold."""


def lacking() -> list[str]:
    """What this machine has to have before any container can run."""
    found = []
    if shutil.which("podman") is None:
        found.append("podman (Debian: apt-get install podman runc aardvark-dns)")
    elif os.geteuid() != 0:
        found.append("root: published ports, bind mounts and bases are made as root")
    elif not any((folder / "aardvark-dns").exists() for folder in _HELPERS):
        found.append("aardvark-dns, by which containers find each other (Debian: aardvark-dns)")
    if shutil.which("openssl") is None:
        found.append("openssl, which makes the certificates")
    return found


class Engine:
    """podman with its images, containers and networks below one directory."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        # Mounts of images must not outlive a restart, so the run root is not kept with them.
        run_root = Path("/run" if os.access("/run", os.W_OK) else "/tmp") / "letta-redis-test"
        (home / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{home}/store"\nrunroot = "{run_root}"\n'
        )
        (home / "containers.conf").write_text(self._configuration())
        self.environ = {
            **os.environ,
            "CONTAINERS_CONF": str(home / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(home / "storage.conf"),
        }

    def _configuration(self) -> str:
        """Limits that this user may set, and runc: crun does not take every machine's cgroups."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
        lines = [
            "[containers]",
            f'default_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]',
            "[engine]",
            'cgroup_manager = "cgroupfs"',
            'events_logger = "file"',
            *(['runtime = "runc"'] if shutil.which("runc") else []),
            "[network]",
            f'network_config_dir = "{self.home}/networks"',
        ]
        return "\n".join(lines) + "\n"

    def podman(self, *arguments: str, limit_s: float = COMMAND_S) -> str:
        return self._run(["podman", *arguments], limit_s)

    def compose(self, files: Sequence[Path], home: Path, *arguments: str) -> str:
        """Run podman-compose on these files; `home` is the HOME that they name."""
        program = [sys.executable, "-m", "podman_compose"]
        named = [word for file in files for word in ("-f", str(file))]
        environ = {**self.environ, "HOME": str(home)}
        return self._run([*program, *named, *arguments], COMMAND_S, environ)

    def script(self, path: Path, *arguments: Path, **environ: str) -> str:
        command = [str(path), *map(str, arguments)]
        return self._run(command, COMMAND_S, {**self.environ, **environ})

    def succeeds(self, *arguments: str) -> bool:
        try:
            self.podman(*arguments)
        except Failed:
            return False
        return True

    def log(self, container: str) -> str:
        """Return the last lines that a container wrote to either stream."""
        done = subprocess.run(
            ["podman", "logs", "--tail", "12", container],
            env=self.environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        return done.stdout

    def _run(
        self, command: list[str], limit_s: float, environ: dict[str, str] | None = None
    ) -> str:
        try:
            done = subprocess.run(
                command,
                env=environ or self.environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=limit_s,
                check=False,
            )
        except subprocess.TimeoutExpired as exc:
            raise Failed(f"{' '.join(command[:6])} took longer than {limit_s:.0f} s") from exc
        if done.returncode:
            last = (done.stdout + done.stderr)[-3000:]
            raise Failed(f"{' '.join(command[:6])} ended with {done.returncode}: {last}")
        return done.stdout

    def remove_everything(self) -> None:
        """Remove the containers, networks and images of this store, and the store."""
        self.podman("rm", "--all", "--force", "--time", "0", "--volumes")
        self.podman("network", "prune", "--force")
        self.podman("rmi", "--all", "--force")
        shutil.rmtree(self.home, ignore_errors=True)
