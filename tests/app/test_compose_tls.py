"""compose/tls.yaml: queue, cache and all who connect to them speak TLS only."""

from __future__ import annotations

import shutil
import ssl
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.compose import COMPOSE, run, services

pytestmark = pytest.mark.acceptance

# The tag is for the engine, and no parser of YAML knows it.
TEXT = (COMPOSE / "tls.yaml").read_text().replace("!override", "")
OVERRIDE: dict[str, Any] = yaml.safe_load(TEXT)
SERVERS = ("valkey-queue", "valkey-cache")


def options(command: list[str]) -> dict[str, str]:
    """The options of a server's command line."""
    assert command[:2] == services()["valkey-queue"]["command"]
    return dict(zip(command[2::2], command[3::2], strict=True))


@pytest.mark.parametrize("server", SERVERS)
def test_a_server_listens_for_tls_alone(server: str) -> None:
    service = OVERRIDE["services"][server]
    given = options(service["command"])
    probe = service["healthcheck"]["test"]

    assert (given["--port"], given["--tls-port"]) == ("0", "6379")
    files = {Path(value).name for name, value in given.items() if name.endswith("-file")}
    assert files == set(service["secrets"]) == {"valkey-ca.crt", f"{server}.crt", f"{server}.key"}
    plain = services()[server]["healthcheck"]["test"]
    assert [word for word in probe if word in plain] == plain
    assert "--tls" in probe


def test_every_client_trusts_the_authority_and_uses_tls() -> None:
    clients = {name for name, found in services().items() if "LETTA_REDIS_URL" in str(found)}
    assert clients == {"letta", "letta-workers", "letta-web"}
    assert set(OVERRIDE["services"]) == clients | set(SERVERS)
    for name in clients:
        before = services()[name]["environment"]
        given = OVERRIDE["services"][name]["environment"]
        for variable in ("LETTA_REDIS_URL", "LETTA_CACHE_REDIS_URL"):
            assert given[variable] == before[variable].replace("redis://", "rediss://")
        (authority,) = OVERRIDE["services"][name]["secrets"]
        assert given["LETTA_REDIS_CA_FILE"] == f"/run/secrets/{authority}"
    # No container gets the key of the authority.
    assert "valkey-ca.key" not in (COMPOSE / "tls.yaml").read_text()


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What make_certificates.sh makes."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    home = tmp_path_factory.mktemp("certificates")
    shutil.copy2(COMPOSE / "make_certificates.sh", home)
    made = certificates(home / "secrets")
    assert made.returncode == 0, made.stderr
    return home / "secrets"


def certificates(secrets: Path) -> subprocess.CompletedProcess[str]:
    return run([str(secrets.parent / "make_certificates.sh")])


@pytest.mark.parametrize("server", SERVERS)
@pytest.mark.parametrize("name", ["its own", "localhost", "another"])
def test_a_certificate_is_good_for_its_servers_names(secrets: Path, server: str, name: str) -> None:
    other = next(each for each in SERVERS if each != server)
    host = {"its own": server, "localhost": "localhost", "another": other}[name]

    if name == "another":
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            shake_hands(secrets, server, host)
    else:
        shake_hands(secrets, server, host)


def shake_hands(secrets: Path, server: str, host: str) -> None:
    """A handshake in memory, in which the client knows the authority alone."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(secrets / f"{server}.crt", secrets / f"{server}.key")
    asking = ssl.create_default_context(cafile=str(secrets / "valkey-ca.crt"))
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(down, up, server_hostname=host)
    peer = serving.wrap_bio(up, down, server_side=True)
    waiting = [client, peer]
    while waiting:
        side = waiting.pop(0)
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            waiting.append(side)


def test_certificates_are_kept_until_they_are_about_to_end(secrets: Path) -> None:
    before = {path.name: path.read_bytes() for path in secrets.iterdir()}
    assert "already" in certificates(secrets).stdout
    assert {path.name: path.read_bytes() for path in secrets.iterdir()} == before

    (secrets / "valkey-cache.crt").unlink()
    assert certificates(secrets).stdout.startswith("made the certificates of valkey-cache in")

    after = {path.name: path.read_bytes() for path in secrets.iterdir()}
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"valkey-cache.crt", "valkey-cache.key", "valkey-ca.srl"}
    shake_hands(secrets, "valkey-cache", "valkey-cache")
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert stat.S_IMODE((secrets / "valkey-ca.key").stat().st_mode) == 0o600
