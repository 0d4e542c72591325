"""Gets the images that compose/ starts from, out of a registry or out of Debian's packages, and builds ours."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.containers.engine import Engine, Failed

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).parent
PYTHON, VALKEY = "python:3.11-slim", "valkey/valkey:8-alpine"
PROMETHEUS = "prom/prometheus:v3.5.0"
# Debian 13: its Valkey is an 8, as in the compose file. Its Python is newer than the image's.
_RELEASE = "trixie"
_PACKAGES = "python3,python3-venv,ca-certificates,valkey-server,prometheus"
_PULL_S = 180.0
_PIP = ("index-url", "cert", "proxy", "trusted-host", "default-timeout")


class Images:
    """The images of one run, and where each of them came from."""

    def __init__(self, engine: Engine, cache: Path, say: Callable[[str], None]) -> None:
        self.engine = engine
        self.cache = cache
        self.say = say
        self.origins: dict[str, str] = {}

    def get(self) -> None:
        base = self._base()
        self._server(base, VALKEY, "valkey")
        self._server(base, PROMETHEUS, "prometheus")
        self._build("letta-redis-workers", ROOT / "compose" / "Dockerfile", ROOT)
        self._build("letta-redis-server", HERE / "letta.Dockerfile", HERE)
        self.origins["letta-redis-server"] = "a stand-in for Letta, on the workers' image"

    def _base(self) -> str | None:
        """Get the image that the Dockerfile starts from. Return the own base if it was made."""
        if self._pulled(f"library/{PYTHON}", PYTHON):
            return None
        archive = self.cache / "base.tar"
        if not archive.exists():
            self.say(f"making {PYTHON} by debootstrap: minutes")
            _make_base(self.cache, archive)
        self.engine.podman("import", str(archive), f"localhost/{PYTHON}")
        self.origins[PYTHON] = f"made by debootstrap of {_RELEASE}: no registry answered"
        return f"localhost/{PYTHON}"

    def _server(self, base: str | None, image: str, name: str) -> None:
        if base is None and self._pulled(image, image):
            return
        self._build(f"localhost/{image}", HERE / f"{name}.Dockerfile", HERE)
        self.origins[image] = f"made of Debian's {name}"

    def _pulled(self, remote: str, name: str) -> bool:
        self.say(f"pulling {name}")
        try:
            self.engine.podman("pull", "--quiet", f"docker.io/{remote}", limit_s=_PULL_S)
        except Failed:
            return False
        self.engine.podman("tag", f"docker.io/{remote}", f"localhost/{name}")
        self.origins[name] = "pulled"
        return True

    def _build(self, name: str, file: Path, context: Path) -> None:
        self.say(f"building {name}")
        ignore = file.with_name(f"{file.name}.dockerignore")
        options = [f"--ignorefile={ignore}"] if ignore.exists() else []
        options += _pip_configuration(self.cache / "pip.conf")
        self.engine.podman(
            "build", "--quiet", "--format=docker", "--pull=never", "--network=host",
            f"--tag={name}", f"--file={file}", *options, str(context),
        )  # fmt: skip


def _make_base(cache: Path, archive: Path) -> None:
    """Install a minimal Debian with Python, Valkey and Prometheus."""
    if shutil.which("debootstrap") is None:
        raise Failed("no registry answers, and there is no debootstrap to make the base image")
    root = cache / "base"
    shutil.rmtree(root, ignore_errors=True)
    command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _RELEASE, str(root)]
    done = subprocess.run([*command, *_mirror()], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"no registry answers, and debootstrap failed: {done.stdout[-2000:]}")
    # As in the public image: `python` and `pip` below /usr/local, apart from Debian's packages.
    subprocess.run(["chroot", str(root), "python3", "-m", "venv", "/usr/local"], check=True)
    shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
    part = archive.with_suffix(".part")
    subprocess.run(["tar", "-C", str(root), "-cf", str(part), "."], check=True)
    part.rename(archive)
    shutil.rmtree(root, ignore_errors=True)


def _mirror() -> list[str]:
    """Return the mirror that this machine's own apt uses, if it is a Debian."""
    sources = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    text = "\n".join(path.read_text() for path in sources if path.is_file())
    return re.findall(r"^(?:URIs:|deb) .*?(https?://\S*/debian)/?(?:\s|$)", text, re.MULTILINE)[:1]


def _pip_configuration(path: Path) -> list[str]:
    """Write how this machine reaches its package index, for pip in a build. Return the mounts."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    found = dict(re.findall(r"^[\w:]+\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE))
    known = {name: found[name] for name in _PIP if name in found}
    path.write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in known.items()))
    files = [path, *(Path(value) for value in known.values() if Path(value).is_file())]
    inside = ["/etc/pip.conf", *map(str, files[1:])]
    return [f"--volume={file}:{target}:ro" for file, target in zip(files, inside, strict=True)]
