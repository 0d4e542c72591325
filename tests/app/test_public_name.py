"""`letta_redis` works next to a project's own `settings`, `cache` and `worker`."""

from __future__ import annotations

import ast
import json
import re
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

import cache
import letta_redis
import settings
import worker
from hatch_build import rename_imports
from tests.support.projects import MODULES, Environment, Project, build, environ, write_modules
from tests.support.servers import run

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
PARTS = ("cache", "settings", "worker")
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module", params=["in its folder", "in site-packages"])
def project(
    request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory
) -> Project:
    """A project that has modules with our names in one of two places."""
    folder = tmp_path_factory.mktemp("project")
    environment = Environment(folder / ".venv")
    write_modules(folder if request.param == "in its folder" else environment.packages)
    environment.install(wheel)
    return Project(folder, environment)


@pytest.fixture(scope="module")
def image(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment made by the same steps as the image of compose/."""
    environment = Environment(tmp_path_factory.mktemp("image"))
    environment.install(wheel)
    dockerfile = (ROOT / "compose" / "Dockerfile").read_text()
    steps = re.findall(r"^RUN (echo .*letta_redis.*)$", dockerfile, re.MULTILINE)
    assert steps
    for step in steps:
        done = run(["/bin/sh", "-c", step.replace("/opt/letta-redis", str(environment.home))])
        assert done.returncode == 0, done.stderr
    return environment


# -- from a wheel, in a project with three modules of our names ----------------------


WHAT_IS_IMPORTED = """
import json, sys
import letta_redis
light = sorted({name.partition(".")[0] for name in sys.modules} & {"redis", "pydantic", "arq"})
import cache, settings, worker, worker.jobs
from letta_redis import *
import letta_redis.cache.errors, letta_redis.settings
import letta_redis.worker.cli, letta_redis.worker.engine, letta_redis.worker.process.supervisor
ours = {n: m.__file__ for n, m in sys.modules.items() if n.startswith("letta_redis")}
print(json.dumps({
    "light": light,
    "missing": [name for name in letta_redis.__all__ if name not in globals()],
    "owners": [cache.OWNER, settings.OWNER, worker.OWNER],
    "same": [
        Priority is letta_redis.worker.Priority,
        open_cache is letta_redis.cache.open_cache,
        get_settings is letta_redis.settings.get_settings,
    ],
    "finders": [str(f) for f in sys.meta_path if type(f).__module__.startswith("letta_redis")],
    "ours": ours,
    "theirs": [n for n in sys.modules if n.partition(".")[0] in ("cache", "settings", "worker")],
}))
"""


def test_every_public_name_imports_beside_clashing_modules(project: Project) -> None:
    found = json.loads(project.script(WHAT_IS_IMPORTED))

    assert found["light"] == []
    assert found["missing"] == []
    assert found["owners"] == ["the project"] * 3
    assert found["same"] == [True] * 3
    assert sorted(found["theirs"]) == ["cache", "settings", "worker", "worker.jobs"]
    assert found["finders"] == []
    home = str(project.environment.packages / "letta_redis")
    assert len(found["ours"]) > 50
    assert all(file.startswith(home) for file in found["ours"].values())


@pytest.mark.parametrize("project", ["in its folder"], indirect=True)
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_a_readme_example_runs_beside_clashing_modules(
    project: Project, private_valkey_url: str, number: int
) -> None:
    assert project.script(EXAMPLES[number], LETTA_REDIS_URL=private_valkey_url)


ENQUEUE = """
import asyncio, json
from letta_redis import JobFailed, Priority, open_cache, open_queue

async def main():
    async with open_queue() as queue, open_cache() as cache:
        job = await queue.enqueue("greet", "Ada", priority=Priority.HIGH)
        refused = await queue.enqueue("greet", "")
        said = await job.result(timeout_s=40)
        try:
            await refused.result(timeout_s=40)
        except JobFailed as exc:
            print(json.dumps([*said, await cache.agents.get("Ada"), str(exc)]))

asyncio.run(main())
"""


def test_the_workers_run_a_job_of_the_projects_own_worker(
    project: Project, private_valkey_url: str
) -> None:
    values = {"LETTA_REDIS_URL": private_valkey_url, "LETTA_WORKER_FUNCTIONS": "worker.jobs:greet"}
    with workers(project, values) as process:
        *said, cached, refused = json.loads(project.script(ENQUEUE, **values))

        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0

    assert said[:3] == ["hello Ada", "the project", "the project"]
    assert said[3].endswith("/worker/jobs.py")
    assert "letta_redis" not in said[3]
    assert cached == {"greeted": True}
    assert "no name" in refused


@contextmanager
def workers(project: Project, values: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    log = project.folder / "workers.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [project.environment.command("letta-workers"), "run", "--count", "1"],
            cwd=project.folder,
            env=environ(**values),
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    except BaseException:
        print(log.read_text())  # noqa: T201  (pytest shows it beside the failure)
        raise
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


@pytest.mark.parametrize("project", ["in its folder"], indirect=True)
def test_other_commands_find_the_public_name(project: Project, private_valkey_url: str) -> None:
    values = {"LETTA_REDIS_URL": private_valkey_url, "LETTA_WORKER_FUNCTIONS": "worker.jobs:greet"}
    environment, folder = project.environment, project.folder
    arq = ("-m", "arq", "--burst", "letta_redis.WorkerSettings")

    burst = environment.run(*arq, cwd=folder, **values)
    status = environment.run("-m", "letta_redis.worker", "status", "--json", cwd=folder, **values)

    assert burst.returncode == 0, burst.stderr
    assert "worker.started" in burst.stderr
    assert status.returncode == 0, status.stderr
    assert "default" in json.loads(status.stdout)


TYPED = """
import asyncio
from typing import assert_type

from cache import OWNER
from letta_redis import (
    Cache, Job, JobQueue, Permanent, Priority, Settings, Transient, WorkerSettings, call,
    get_settings, open_cache, open_queue,
)
from letta_redis.cache import CacheError
from letta_redis.settings import SettingsError
from letta_redis.worker import QueueFull
from letta_redis.worker.engine import RetryPolicy, Worker
from worker.jobs import greet


async def main() -> None:
    settings = get_settings()
    assert_type(settings, Settings)
    assert_type(settings.redis_url, str)
    async with open_queue(settings) as queue, open_cache() as cache:
        assert_type(queue, JobQueue)
        assert_type(cache, Cache)
        job = await queue.enqueue("greet", OWNER, priority=Priority.LOW)
        assert_type(job, Job)
        greeting = await queue.enqueue(greet, OWNER)
        assert_type(await greeting.result(timeout_s=10), list[str])
        await queue.enqueue_many([call("greet", "Ada")])

        async def load() -> dict[str, int]:
            return {}

        assert_type(await cache.agents.get_or_load("a1", load), dict[str, int])


errors: list[type[Exception]] = [CacheError, Permanent, QueueFull, SettingsError, Transient]
assert_type(WorkerSettings, type)
policy = RetryPolicy()
worker: type[Worker] = Worker
print(greet, policy)
asyncio.run(main())
"""


# Two mistakes, each of which needs our types to be seen.
MISTAKEN = """
from letta_redis import open_cache, open_queue


async def main() -> None:
    async with open_queue() as queue:
        await queue.enqueue_many([], prioirty=3)
    open_cache(3)
"""


@pytest.mark.parametrize("project", ["in its folder"], indirect=True)
def test_mypy_strict_knows_our_types_beside_clashing_modules(project: Project) -> None:
    (project.folder / "typed.py").write_text(TYPED)
    (project.folder / "mistaken.py").write_text(MISTAKEN)
    python = str(project.environment.python)
    command = [sys.executable, "-m", "mypy", "--strict", "--python-executable", python]

    checked = subprocess.run(
        [*command, "typed.py", "mistaken.py"],
        cwd=project.folder,
        env=environ(),
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert checked.stderr == ""
    errors = [line for line in checked.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 2, checked.stdout
    assert 'Unexpected keyword argument "prioirty"' in errors[0]
    assert 'mistaken.py:8: error: Argument 1 to "open_cache"' in errors[1]


@pytest.mark.parametrize("project", ["in site-packages"], indirect=True)
def test_installing_the_wheel_leaves_a_projects_modules_alone(project: Project) -> None:
    for name, text in MODULES.items():
        assert (project.environment.packages / name).read_text() == text


# -- what the wheel carries ------------------------------------------------------------


def test_nothing_in_the_wheel_names_a_module_at_the_top(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        sources = {
            name: archive.read(name).decode()
            for name in archive.namelist()
            if name.endswith(".py") and name != "letta_redis/_aliases.py"
        }
    modules = {
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in sources
    }
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                assert (node.module or "").partition(".")[0] not in PARTS, (name, node.lineno)
            elif isinstance(node, ast.Import):
                assert not {alias.name.partition(".")[0] for alias in node.names} & set(PARTS), name
            elif (
                isinstance(node, ast.Constant) and isinstance(node.value, str) and "." in node.value
            ):
                assert f"letta_redis.{node.value}" not in modules, (name, node.lineno)


def test_a_file_of_the_wheel_has_the_lines_of_its_source(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name: archive.read(name) for name in archive.namelist()}
    sources = [ROOT / "settings.py", *ROOT.glob("cache/**/*.*"), *ROOT.glob("worker/**/*.*")]
    sources = [path for path in sources if path.suffix in {".py", ".lua", ".typed"}]
    assert len(sources) > 100
    for path in sources:
        found = packed[f"letta_redis/{path.relative_to(ROOT)}"]
        back = re.sub(rb"(from|import) letta_redis\.(?=cache|settings|worker)", rb"\1 ", found)
        # What names the public package on its own account is the same in both.
        source = path.read_bytes()
        assert back.count(b"\n") == source.count(b"\n")
        assert back == re.sub(
            rb"(from|import) letta_redis\.(?=cache|settings|worker)", rb"\1 ", source
        )


def test_a_wheel_from_the_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    sdist = build(tmp_path / "sdist", target="sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "source", filter="data")
    (source,) = (tmp_path / "source").iterdir()

    again = build(tmp_path / "wheel", source=source)

    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert sorted(first.namelist()) == sorted(second.namelist())
        assert all(first.read(name) == second.read(name) for name in first.namelist())


@pytest.mark.parametrize(
    ("source", "renamed"),
    [
        ("from cache.errors import X\n", "from letta_redis.cache.errors import X\n"),
        ("from  worker import (\n    X,\n)\n", "from  letta_redis.worker import (\n    X,\n)\n"),
        ("import settings as s, os\n", "import letta_redis.settings as s, os\n"),
        ("é = 1; from cache import X\n", "é = 1; from letta_redis.cache import X\n"),
        ("if X:\n    from settings import S\n", "if X:\n    from letta_redis.settings import S\n"),
        (
            "from . import worker\nfrom .cache import y\n",
            "from . import worker\nfrom .cache import y\n",
        ),
        ("from workers import x\nimport cached\n", "from workers import x\nimport cached\n"),
        ('"""\nfrom cache import X\n"""\n', '"""\nfrom cache import X\n"""\n'),
    ],
)
def test_the_build_renames_imports_and_nothing_else(source: str, renamed: str) -> None:
    assert rename_imports(source.encode(), "x.py").decode() == renamed


@pytest.mark.parametrize("source", ["import worker\n", "import os, cache.keys\n"])
def test_the_build_refuses_an_import_that_binds_our_top_name(source: str) -> None:
    with pytest.raises(ValueError, match=r"^x\.py:1: write `from "):
        rename_imports(source.encode(), "x.py")


# -- in the image --------------------------------------------------------------------


TOP_NAMES = """
import sys
import worker.queue.priority
from cache import open_cache
from settings import get_settings
from worker import Priority
import letta_redis, letta_redis.worker.queue.priority
assert worker is letta_redis.worker
assert worker.queue.priority is letta_redis.worker.queue.priority
assert (open_cache, get_settings, Priority) == (
    letta_redis.open_cache, letta_redis.get_settings, letta_redis.Priority)
print(worker.__name__)
"""


def test_the_image_has_the_repositorys_names_for_the_same_objects(
    image: Environment, tmp_path: Path
) -> None:
    done = image.run("-W", "error", "-c", TOP_NAMES, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "letta_redis.worker\n"


def test_the_image_runs_arq_and_the_module_by_the_repositorys_names(
    image: Environment, tmp_path: Path, private_valkey_url: str
) -> None:
    values = {"LETTA_REDIS_URL": private_valkey_url}

    burst = image.run("-m", "arq", "--burst", "worker.WorkerSettings", cwd=tmp_path, **values)
    status = image.run("-m", "worker", "status", "--json", cwd=tmp_path, **values)

    assert burst.returncode == 0, burst.stderr
    assert "worker.started" in burst.stderr
    assert status.returncode == 0, status.stderr
    assert "default" in json.loads(status.stdout)


def test_a_module_of_the_users_comes_first_in_the_image(
    image: Environment, private_valkey_url: str, tmp_path: Path
) -> None:
    write_modules(tmp_path)
    user = Project(tmp_path, image)
    values = {"LETTA_REDIS_URL": private_valkey_url, "LETTA_WORKER_FUNCTIONS": "worker.jobs:greet"}

    with workers(user, values):
        said = json.loads(user.script(ENQUEUE, **values))

    assert said[:3] == ["hello Ada", "the project", "the project"]


# -- in the repository -----------------------------------------------------------------


@pytest.mark.parametrize("part", PARTS)
def test_a_public_module_is_the_repositorys_own(part: str) -> None:
    assert import_module(f"letta_redis.{part}") is import_module(part)


def test_a_public_name_is_the_repositorys_own() -> None:
    assert letta_redis.Priority is worker.Priority
    assert letta_redis.open_cache is cache.open_cache
    assert letta_redis.Settings is settings.Settings
    engine = import_module("letta_redis.worker.engine")
    assert engine.Worker is import_module("worker.engine").Worker


EVERY_MODULE = """
import pkgutil, sys
from importlib import import_module
import letta_redis, cache, settings, worker

for package in (cache, worker):
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not found.name.endswith("__main__"):
            short = found.name.removeprefix("letta_redis.")
            names = (short, "letta_redis." + short)
            first, second = (import_module(name) for name in sorted(names, reverse=FLIP))
            assert first is second, found.name
            assert first.__spec__.name == first.__name__, first.__spec__

files = {}
for module in list(sys.modules.values()):
    file = getattr(module, "__file__", None)
    if file:
        files.setdefault(file, set()).add(id(module))
assert not [file for file, ids in files.items() if len(ids) > 1]
print(len([file for file in files if "/worker/" in file or "/cache/" in file]))
"""


@pytest.mark.parametrize(
    ("place", "flip"), [("repository", False), ("repository", True), ("image", True)]
)
def test_no_module_is_loaded_twice(image: Environment, place: str, flip: bool) -> None:
    python = sys.executable if place == "repository" else str(image.python)
    text = EVERY_MODULE.replace("FLIP", str(flip))

    done = run([python, "-W", "error", "-c", text], cwd="/", env=environ())

    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_python_runs_the_worker_by_both_names() -> None:
    for name in ("worker", "letta_redis.worker"):
        done = run([sys.executable, "-W", "error", "-m", name, "--version"], cwd=ROOT)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("letta-workers, version ")


def test_a_checkout_hidden_by_a_clashing_module_says_so(tmp_path: Path) -> None:
    write_modules(tmp_path)

    done = run([sys.executable, "-c", "from letta_redis import Priority"], cwd=tmp_path)

    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ImportError: letta_redis.cache: this is a checkout of letta-redis")
    assert str(tmp_path / "cache" / "__init__.py") in last


# -- the names ---------------------------------------------------------------------------


PLUGIN_NAMES = {"install", "install_in_child", "installed", "uninstall"}
CACHE_NAMES = {
    "Cache",
    "CacheError",
    "CacheOptions",
    "CacheUnavailable",
    "CodecError",
    "EmbeddedServerError",
    "InvalidName",
    "Invalidator",
    "Keyring",
    "Lease",
    "LeaseHeld",
    "LeaseLost",
    "LoaderTimeout",
    "LocalOptions",
    "MissingExtra",
    "NamedLease",
    "NotEncodable",
    "RedisUnavailable",
    "UnsupportedRedisURL",
    "WriteToken",
    "open_cache",
    "open_invalidator",
}
SETTINGS_NAMES = {"Settings", "SettingsError", "get_settings", "load_settings"}
WORKER_NAMES = {
    "Call",
    "EnqueueRefused",
    "InvalidArgument",
    "InvalidWebhookURL",
    "Job",
    "JobAborted",
    "JobFailed",
    "JobQueue",
    "JobStatus",
    "NotConfirmed",
    "NotFound",
    "NotSerializable",
    "PayloadTooLarge",
    "Permanent",
    "Priority",
    "QueueDisabled",
    "QueueFull",
    "QueueMemoryFull",
    "QueueUnavailable",
    "RequestFailed",
    "ResultTimeout",
    "Transient",
    "Unique",
    "UnknownProvider",
    "WorkerError",
    "WorkerSettings",
    "call",
    "open_queue",
}


def test_the_public_names_are_these() -> None:
    assert set(cache.__all__) == CACHE_NAMES
    assert set(settings.__all__) == SETTINGS_NAMES
    assert set(worker.__all__) == WORKER_NAMES
    everything = CACHE_NAMES | SETTINGS_NAMES | WORKER_NAMES | PLUGIN_NAMES | {"__version__"}
    assert set(letta_redis.__all__) == everything
    assert len(letta_redis.__all__) == len(everything)
