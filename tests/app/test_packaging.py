"""The base install works without arq, on the oldest and the newest redis-py."""

from __future__ import annotations

import json
import zipfile
from importlib.metadata import distributions
from pathlib import Path

import pytest

from tests.support.servers import run

pytestmark = pytest.mark.acceptance

ROOT = Path(__file__).parents[2]
BASE = ROOT / ".venv" / "base"
# At the top of the repository; a wheel has them below `letta_redis`.
TOP_NAMES = ("cache", "settings", "worker")

# Runs in the base environment: the client at work, and what got imported for it.
BASE_USE = """
import asyncio, importlib.util, json, sys
from importlib.metadata import packages_distributions, version
import letta_redis
from letta_redis import Priority, load_settings, open_cache, open_queue

async def main():
    settings = load_settings(redis_url=sys.argv[1])
    async with open_queue(settings) as queue, open_cache(settings) as cache:
        job = await queue.enqueue("echo", 1, priority=Priority.HIGH, delay_s=60)
        webhook = await queue.send_webhook("https://example.com/", {"a": 1}, event_type="x")
        async def load():
            return {"version": 1}
        first = await cache.agents.get_or_load("base-install", load)
        again = await cache.agents.get("base-install")
        await cache.agents.invalidate("base-install")
        return {
            "status": await job.status(),
            "delivery": (await queue.delivery(webhook)).state,
            "cached": [first, again, await cache.agents.get("base-install")],
            "redis": version("redis"),
            "version": letta_redis.__version__,
            "forbidden": [n for n in ("arq", "aiohttp", "letta", "structlog", "rich") if n in sys.modules],
            "arq_installed": importlib.util.find_spec("arq") is not None,
            "owner": packages_distributions().get("letta_redis"),
            "others": [n for n in sys.argv[2:] if importlib.util.find_spec(n) is not None],
        }

print(json.dumps(asyncio.run(main())))
"""


@pytest.mark.parametrize(("which", "major"), [("oldest", "5.3."), ("newest", "")])
def test_the_base_install_works_without_arq(
    private_valkey_url: str, tmp_path: Path, which: str, major: str
) -> None:
    python = BASE / which / "bin" / "python"
    # Away from the checkout, so that the installed wheel is what is imported.
    done = run([str(python), "-c", BASE_USE, private_valkey_url, *TOP_NAMES], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["redis"].startswith(major)
    if which == "newest":
        assert int(found["redis"].split(".")[0]) >= 6
    assert found["status"] == "deferred"
    assert found["delivery"] == "pending"
    assert found["cached"] == [{"version": 1}, {"version": 1}, None]
    assert found["forbidden"] == []
    assert found["arq_installed"] is False
    assert found["owner"] == ["letta-redis"]
    assert found["others"] == []


def test_the_command_of_the_base_install_says_what_to_install(tmp_path: Path) -> None:
    command = BASE / "newest" / "bin" / "letta-workers"

    done = run([str(command), "status"], cwd=tmp_path)

    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.endswith("pip install 'letta-redis[worker]'")


def test_no_other_distribution_brings_a_package_of_our_names() -> None:
    for found in distributions():
        if found.metadata["Name"] == "letta-redis":
            continue
        tops = {Path(str(path)).parts[0].removesuffix(".py") for path in found.files or ()}
        assert not tops & {"letta_redis", *TOP_NAMES}, found.metadata["Name"]


def test_the_wheel_carries_everything_it_needs_and_nothing_else() -> None:
    (wheel,) = (BASE / "dist").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"letta_redis"}
    assert "letta_redis/py.typed" in names
    files = (
        "cache/**/*.lua",
        "worker/**/*.lua",
        "worker/web/page/templates/*",
        "worker/web/page/static/*",
    )
    for path in (path for pattern in files for path in ROOT.glob(pattern)):
        assert f"letta_redis/{path.relative_to(ROOT)}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_constraints_pin_every_version_and_name_no_address() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert pins
    assert all("==" in line and "/" not in line and "@" not in line for line in pins)
