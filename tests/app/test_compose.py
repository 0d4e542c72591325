"""compose/ matches the public schema, and each service's command and probe work."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml
from redis.exceptions import OutOfMemoryError

from cache.connection.pool import PoolOptions, open_pool
from settings import Settings, variable_name
from tests.support.compose import (
    COMPOSE,
    ROOT,
    ValkeyService,
    configuration,
    directive,
    load,
    run,
    seconds,
    services,
    size_bytes,
)
from tests.support.supervised import start
from tests.support.wait import eventually
from worker.process.policy import SupervisorOptions

pytestmark = pytest.mark.acceptance

VALKEYS = ("valkey-queue", "valkey-cache", "valkey-letta")
SERVICES = (*VALKEYS, "letta", "letta-workers")
OBSERVING = ("letta-web", "prometheus", "grafana")
# Letta's own image runs PostgreSQL, which writes beside its data.
READ_ONLY = (*VALKEYS, "letta-workers", *OBSERVING)
# 12 MB of room, and 30 MB of somebody's data: a server that is full, within a second.
SMALL = ("--maxmemory", "12mb")
JOBS = {f"arq:job:{n}": b"x" * 500 for n in range(200)}


# -- the file ------------------------------------------------------------------


def test_the_files_are_valid_by_the_public_compose_schema(tmp_path: Path) -> None:
    arguments = ["--builtin-schema", "vendor.compose-spec"]
    for name in ("compose.yaml", "tls.yaml", "single.yaml"):
        # The tag is for the engine, and no parser of YAML knows it.
        (tmp_path / name).write_text((COMPOSE / name).read_text().replace("!override", ""))
        arguments.append(str(tmp_path / name))

    checked = run([sys.executable, "-m", "check_jsonschema", *arguments])

    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_it_has_the_five_services_and_those_of_a_profile() -> None:
    profiles = {name: service.get("profiles") for name, service in services().items()}

    assert profiles == dict.fromkeys(SERVICES) | {key: ["observability"] for key in OBSERVING}


@pytest.mark.parametrize("name", [*SERVICES, *OBSERVING])
def test_services_are_probed_restarted_and_limited(name: str) -> None:
    service = services()[name]

    assert service["healthcheck"]["test"][0] == "CMD"
    assert service["restart"] == "unless-stopped"
    assert service["init"] is True
    assert "no-new-privileges:true" in service["security_opt"]
    assert size_bytes(service["mem_limit"]) > 0
    assert 0 < service["pids_limit"] <= 2048
    assert seconds(service["stop_grace_period"]) > 0
    assert service["logging"]["options"]["max-size"]


@pytest.mark.parametrize("name", READ_ONLY)
def test_all_but_letta_run_on_a_read_only_root(name: str) -> None:
    assert services()[name]["read_only"] is True


@pytest.mark.parametrize("name", ["letta-workers", *OBSERVING])
def test_what_starts_without_root_has_no_capabilities(name: str) -> None:
    assert services()[name]["cap_drop"] == ["ALL"]


def test_services_share_a_network_only_if_they_talk() -> None:
    networks = {name: set(service["networks"]) for name, service in services().items()}
    shared = {
        (one, other)
        for one in networks
        for other in networks
        if one < other and networks[one] & networks[other]
    }

    assert shared == {
        ("letta", "valkey-queue"),
        ("letta", "valkey-cache"),
        ("letta", "valkey-letta"),
        ("letta-workers", "valkey-queue"),
        ("letta-workers", "valkey-cache"),
        ("letta-web", "valkey-queue"),
        ("letta-web", "valkey-cache"),
        ("letta-web", "prometheus"),
        ("grafana", "prometheus"),
        # Side effects: on data, on the way out, and among what watches.
        ("valkey-cache", "valkey-queue"),
        ("letta", "letta-workers"),
        ("letta", "letta-web"),
        ("letta-web", "letta-workers"),
        ("grafana", "letta-web"),
    }
    closed = {name for name, network in load()["networks"].items() if network}
    assert closed == {"data", "locks"}
    assert [name for name, joined in networks.items() if not joined - closed] == [
        "valkey-cache",
        "valkey-letta",
    ]


def test_prometheus_takes_our_rules_and_scrapes_what_listens(tmp_path: Path) -> None:
    web, prometheus = services()["letta-web"], services()["prometheus"]
    found = yaml.safe_load((COMPOSE / "prometheus.yml").read_text())
    (job,) = found["scrape_configs"]
    mounted = dict(volume.split(":")[1::-1] for volume in prometheus["volumes"])

    assert job["static_configs"] == [{"targets": ["letta-web:8484"]}]
    assert web["environment"]["LETTA_WEB_LISTEN"] == "0.0.0.0:8484"
    assert job["authorization"]["credentials_file"] == "/run/secrets/letta_web_read_token"
    assert prometheus["secrets"] == ["letta_web_read_token"]
    rules = COMPOSE / mounted[f"/etc/prometheus/{found['rule_files'][0]}"]
    assert rules.resolve() == ROOT / "ops" / "prometheus" / "rules.yml"
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    shutil.copy2(COMPOSE / "prometheus.yml", tmp_path)
    shutil.copy2(rules, tmp_path)
    checked = run([promtool, "check", "config", "--syntax-only", str(tmp_path / "prometheus.yml")])
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_grafana_finds_its_source_and_our_dashboards() -> None:
    mounted = dict(volume.split(":")[1::-1] for volume in services()["grafana"]["volumes"])
    files = {
        name: yaml.safe_load((COMPOSE / mounted[f"/etc/grafana/provisioning/{name}"]).read_text())
        for name in ("datasources/letta-redis.yml", "dashboards/letta-redis.yml")
    }

    (source,) = files["datasources/letta-redis.yml"]["datasources"]
    assert source["url"] == "http://prometheus:9090"
    (provider,) = files["dashboards/letta-redis.yml"]["providers"]
    folder = (COMPOSE / mounted[provider["options"]["path"]]).resolve()
    assert folder == ROOT / "ops" / "grafana"


def test_every_published_port_is_bound_to_loopback() -> None:
    published = [port for service in services().values() for port in service.get("ports", ())]

    assert "127.0.0.1:6380:6379" in published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_the_queue_keeps_its_data_in_the_operators_home() -> None:
    assert "/home/operator/.letta/.persist/redis:/data" in services()["valkey-queue"]["volumes"]
    assert directive(COMPOSE / "valkey-queue.conf", "dir") == "./"  # the image's /data


@pytest.mark.parametrize("name", ["letta", "letta-workers"])
def test_a_service_waits_until_what_it_needs_is_healthy(name: str) -> None:
    needed = services()[name]["depends_on"]

    assert set(needed) == {host for host in VALKEYS if host in str(services()[name]["environment"])}
    assert {need["condition"] for need in needed.values()} == {"service_healthy"}


def test_workers_are_stopped_only_after_their_drain() -> None:
    workers = services()["letta-workers"]
    grace_s = float(workers["environment"]["LETTA_WORKER_SHUTDOWN_GRACE_S"])

    assert seconds(workers["stop_grace_period"]) > grace_s + SupervisorOptions().kill_margin_s


@pytest.mark.parametrize(
    ("name", "times"), [("valkey-queue", 2.0), ("valkey-cache", 1.5), ("valkey-letta", 1.5)]
)
def test_a_containers_limit_exceeds_its_servers_maxmemory(name: str, times: float) -> None:
    service = services()[name]
    limit = size_bytes(directive(configuration(service), "maxmemory"))

    assert size_bytes(service["mem_limit"]) >= times * limit


def test_the_workers_count_and_log_level_have_defaults_and_can_be_set() -> None:
    def environment(**environ: str) -> dict[str, str]:
        found: dict[str, str] = load(environ)["services"]["letta-workers"]["environment"]
        return found

    assert str(environment()["LETTA_WORKER_COUNT"]) == "4"
    assert environment()["LETTA_WORKER_LOG_LEVEL"] == "INFO"
    chosen = environment(LETTA_WORKER_COUNT="7", LETTA_WORKER_LOG_LEVEL="DEBUG")
    assert str(chosen["LETTA_WORKER_COUNT"]) == "7"
    assert chosen["LETTA_WORKER_LOG_LEVEL"] == "DEBUG"


def test_every_variable_given_to_the_workers_is_a_setting() -> None:
    known = {variable_name(field) for field in Settings.model_fields}

    assert set(services()["letta-workers"]["environment"]) <= known


@pytest.mark.parametrize("name", ["letta", "letta-workers"])
def test_every_setting_of_the_env_file_reaches_the_service(name: str) -> None:
    addresses = {
        "LETTA_REDIS_URL", "LETTA_REDIS_USERNAME",
        "LETTA_CACHE_REDIS_URL", "LETTA_CACHE_REDIS_USERNAME",
        "LETTA_REDIS_HOST", "LETTA_REDIS_PORT",
    }  # fmt: skip
    service = services()[name]
    given = dict.fromkeys(service["environment"], "chosen")
    filled = load(given)["services"][name]["environment"]

    assert service["env_file"] == [{"path": ".env", "required": False}]
    # What `environment` sets wins over the file, so it must take the file's value, too.
    assert {key for key, value in filled.items() if value != "chosen"} <= addresses


def test_modules_in_the_jobs_folder_are_jobs_of_the_workers() -> None:
    (volume,) = services()["letta-workers"]["volumes"]
    source, target, mode = volume.split(":")
    (path_file,) = (rest for _, rest in _instructions() if "letta_redis_jobs.pth" in rest)

    assert (COMPOSE / source).is_dir()
    assert (target, mode) == ("/jobs", "ro")
    assert path_file.startswith(f"echo {target} > ")


def test_queue_and_cache_are_different_servers_for_everyone() -> None:
    for name in ("letta", "letta-workers"):
        environment = services()[name]["environment"]
        assert environment["LETTA_REDIS_URL"] == "redis://valkey-queue:6379/0"
        assert environment["LETTA_CACHE_REDIS_URL"] == "redis://valkey-cache:6379/0"
    # The Letta server's own locks must not be evicted either.
    assert services()["letta"]["environment"]["LETTA_REDIS_HOST"] == "valkey-letta"
    assert directive(COMPOSE / "valkey-letta.conf", "maxmemory-policy") == "noeviction"


# -- the Valkey servers ----------------------------------------------------------


@pytest.mark.parametrize("name", VALKEYS)
def test_a_valkey_starts_from_its_file_and_passes_its_probe(name: str, tmp_path: Path) -> None:
    service = ValkeyService(name, tmp_path)

    assert service.probe() != 0
    with service.running():
        assert service.probe() == 0
    assert service.probe() != 0


async def test_a_probe_fails_on_a_server_that_answers_with_an_error(tmp_path: Path) -> None:
    service = ValkeyService("valkey-cache", tmp_path, "--requirepass", "wanted")
    with service.running():
        assert service.probe() != 0


async def test_the_full_queue_refuses_writes_and_keeps_every_job(tmp_path: Path) -> None:
    service = ValkeyService("valkey-queue", tmp_path, *SMALL)
    with service.running():
        async with open_pool(service.url, PoolOptions(), name="test") as client:
            await client.mset(JOBS)

            with pytest.raises(OutOfMemoryError):
                await _fill(client)

            assert await client.exists(*JOBS) == len(JOBS)
            assert (await client.info("stats"))["evicted_keys"] == 0


async def test_the_full_cache_evicts_and_takes_every_write(tmp_path: Path) -> None:
    service = ValkeyService("valkey-cache", tmp_path, *SMALL)
    with service.running():
        async with open_pool(service.url, PoolOptions(), name="test") as client:
            await _fill(client)

            assert (await client.info("stats"))["evicted_keys"] > 0
            assert (await client.info("memory"))["used_memory"] <= 13 * 2**20


async def test_the_queue_keeps_accepted_jobs_after_kill_9(tmp_path: Path) -> None:
    service = ValkeyService("valkey-queue", tmp_path)
    with service.running() as process:
        async with open_pool(service.url, PoolOptions(), name="test") as client:
            await client.mset(JOBS)
        process.kill()
        process.wait()

    with service.running():
        async with open_pool(service.url, PoolOptions(), name="test") as client:
            assert await client.exists(*JOBS) == len(JOBS)


async def test_the_cache_writes_nothing_to_the_disk(tmp_path: Path) -> None:
    service = ValkeyService("valkey-cache", tmp_path)
    with service.running():
        async with open_pool(service.url, PoolOptions(), name="test") as client:
            await client.mset(JOBS)

    assert os.listdir(tmp_path) == ["server.log"]  # noqa: PTH208


async def _fill(client: object) -> None:
    for n in range(300):
        await client.set(f"filler:{n}", b"y" * 100_000)  # type: ignore[attr-defined]


# -- the Letta server --------------------------------------------------------------


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_lettas_probe_reads_its_health_endpoint(status: int, healthy: bool) -> None:
    kind, program, flag, code = services()["letta"]["healthcheck"]["test"]
    assert (kind, program, flag) == ("CMD", "python3", "-c")
    assert "127.0.0.1:8283/" in code

    with _health_endpoint(status) as port:
        probed = run([sys.executable, flag, code.replace(":8283/", f":{port}/")])

    assert (probed.returncode == 0) is healthy


@contextmanager
def _health_endpoint(status: int) -> Iterator[int]:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/v1/health/" else 404)
            self.end_headers()

        def log_message(self, *_args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


# -- the image, as far as it can be checked without an engine -------------------------


IMAGES = ("Dockerfile", "Dockerfile.letta")


def _instructions(image: str = "Dockerfile") -> list[tuple[str, str]]:
    text = (COMPOSE / image).read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in lines]


def _copied(image: str = "Dockerfile") -> list[str]:
    """Return the paths that the Dockerfile copies from the repository."""
    copies = [rest.split() for name, rest in _instructions(image) if name == "COPY"]
    return [path for words in copies if not words[0].startswith("--from") for path in words[:-1]]


def test_the_image_runs_as_a_user_without_rights_and_in_exec_form() -> None:
    last = dict(_instructions())

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", last["USER"])
    assert last["CMD"] == '["start_workers.sh"]'
    assert last["FROM"] == "python:3.11-slim"
    assert services()["letta-workers"]["healthcheck"]["test"][1:] == ["letta-workers", "health"]
    assert last["HEALTHCHECK"].endswith('CMD ["letta-workers", "health"]')


def test_the_letta_service_is_the_release_that_the_plugin_knows() -> None:
    build = services()["letta"]["build"]
    arguments = [rest for name, rest in _instructions("Dockerfile.letta") if name == "ARG"]
    bases = [rest for name, rest in _instructions("Dockerfile.letta") if name == "FROM"]
    environment = (ROOT / "tests/letta/environment.in").read_text()

    assert build["dockerfile"] == "compose/Dockerfile.letta"
    assert arguments == ["LETTA_IMAGE=letta/letta:0.16.8"]
    assert build["args"] == {"LETTA_IMAGE": "letta/letta:0.16.8"}
    assert bases[-1] == "${LETTA_IMAGE}"
    assert "==0.16.8" in environment


def test_the_letta_image_starts_our_command(tmp_path: Path) -> None:
    """The step that changes the start script does so, or fails on one that it does not know."""
    (step,) = (rest for name, rest in _instructions("Dockerfile.letta") if rest.startswith("sed "))
    script = tmp_path / "letta/server/startup.sh"
    script.parent.mkdir(parents=True)

    script.write_text('CMD="letta server --host $HOST --port $PORT"\nexec $CMD\n')
    assert run(["/bin/sh", "-c", step], cwd=tmp_path).returncode == 0
    ours = 'CMD="python -m letta_redis server --host $HOST --port $PORT"\nexec $CMD\n'
    assert script.read_text() == ours

    script.write_text("exec something else\n")
    assert run(["/bin/sh", "-c", step], cwd=tmp_path).returncode != 0


def test_the_letta_image_adds_what_its_environment_lacks() -> None:
    """Last on the path, so that nothing of Letta's is replaced."""
    steps = " ".join(rest for name, rest in _instructions("Dockerfile.letta") if name == "RUN")
    (added,) = re.findall(r"grep -E '\^\(([^)]*)\)==' constraints.txt > missing.txt", steps)
    locked = (ROOT / "tests/letta/environment.in").read_text().split()

    assert set(added.split("|")) == {"cronsim", "hiredis", "msgspec"}
    assert {"cronsim", "msgspec", "redis[hiredis]"} <= set(locked)
    assert "letta_redis.pth" in steps
    assert steps.rstrip().endswith("python -m letta_redis doctor")


@pytest.mark.parametrize("image", IMAGES)
def test_the_image_names_no_package_index(image: str) -> None:
    text = (COMPOSE / image).read_text()

    assert "--index" not in text
    assert "--find-links" not in text
    assert "://" not in text


@pytest.mark.parametrize("image", IMAGES)
def test_every_copied_path_exists_and_is_not_ignored(image: str) -> None:
    ignore = (COMPOSE / f"{image}.dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignore if line.startswith("!")}

    assert "*" in ignore
    assert set(_copied(image)) == allowed
    for path in _copied(image):
        assert (ROOT / path).exists(), path


def test_copied_files_are_enough_to_build_the_package(tmp_path: Path) -> None:
    for path in _copied():
        target = tmp_path / "src" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / path).is_dir():
            shutil.copytree(ROOT / path, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / path, target)
    built = run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "out")],
        cwd=tmp_path / "src",
    )
    assert built.returncode == 0, built.stderr

    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry_points = next(name for name in names if name.endswith("entry_points.txt"))
        assert "letta-workers = letta_redis.command:main" in archive.read(entry_points).decode()
    scripts = {f"letta_redis/{path.relative_to(ROOT)}" for path in ROOT.glob("worker/**/*.lua")}
    assert scripts
    assert scripts <= set(names)


def test_the_start_script_without_the_package_says_what_to_do(tmp_path: Path) -> None:
    script = tmp_path / "bin" / "start_workers.sh"
    script.parent.mkdir()
    script.write_bytes((COMPOSE / "start_workers.sh").read_bytes())

    started = run(["/bin/sh", str(script)], {"PATH": "/usr/bin:/bin"})

    assert started.returncode == 2
    assert started.stderr.startswith("letta-workers is not on PATH; run 'make setup'")
    assert started.stderr.count("\n") == 1


# -- the workers -------------------------------------------------------------------


async def test_workers_start_and_drain_with_the_files_environment(
    tmp_path: Path,
) -> None:
    queue = ValkeyService("valkey-queue", tmp_path / "queue")
    cache = ValkeyService("valkey-cache", tmp_path / "cache")
    with queue.running(), cache.running():
        environ = _workers_environment(queue, cache)
        assert _workers_probe(environ).returncode == 1

        async with start(program=str(COMPOSE / "start_workers.sh"), environ=environ) as running:
            await running.event("supervisor.child_ready", count=4, deadline_s=120)
            await eventually(lambda: _is_healthy(environ), deadline_s=100)
            running.signal(signal.SIGTERM)

            assert await running.exit_code() == 0
            ended = running.all("supervisor.child_ended", exit_code=0)
            assert len(ended) == 4
    unreachable = _workers_probe(environ)
    assert unreachable.returncode == 1
    assert unreachable.stderr.count("\n") <= 2, unreachable.stderr


async def test_a_wrong_setting_ends_the_workers_with_2_and_one_line() -> None:
    environ = {"LETTA_WORKER_COUNT": "none"}
    async with start(program=str(COMPOSE / "start_workers.sh"), environ=environ) as running:
        assert await running.exit_code() == 2
        (line,) = running.lines
        assert line.startswith("LETTA_WORKER_COUNT: ")


def _workers_environment(queue: ValkeyService, cache: ValkeyService) -> dict[str, str]:
    """Return the file's environment with the addresses of this test's servers."""
    given = services()["letta-workers"]["environment"]
    environ = {name: str(value) for name, value in given.items()}
    for name, server in (("valkey-queue", queue), ("valkey-cache", cache)):
        for variable, value in environ.items():
            environ[variable] = value.replace(f"{name}:6379", f"127.0.0.1:{server.port}")
    # These servers have no users file; test_security_compose.py has one.
    del environ["LETTA_REDIS_USERNAME"], environ["LETTA_CACHE_REDIS_USERNAME"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {**environ, "PATH": path, "LETTA_SECRETS_DIR": "/nonexistent"}


def _workers_probe(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    kind, *command = services()["letta-workers"]["healthcheck"]["test"]
    assert kind == "CMD"
    return run(["/usr/bin/env", *command], environ)


async def _is_healthy(environ: dict[str, str]) -> bool:
    return (await asyncio.to_thread(_workers_probe, environ)).returncode == 0
