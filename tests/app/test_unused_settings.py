"""Settings that are misspelled or change nothing are told; a switch that is off refuses by name."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from letta_redis import JobQueue, QueueDisabled, QueueUnavailable, open_queue
from settings import Settings, SettingsError, load_settings, variable_name
from worker.app.functions import build_functions, warn_about_class, warn_about_unknown_jobs
from worker.app.service import build_worker_settings
from worker.llm.client import LLMRequests
from worker.queue.client import Jobs
from worker.queue.dead import DeadLetters
from worker.webhooks.client import Webhooks

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]


def told(event: str) -> dict[str, Any]:
    """Load the settings; return what was logged about each variable under this event."""
    with capture_logs() as logs:
        load_settings()
    return {row["variable"]: row for row in logs if row["event"] == f"settings.{event}"}


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("LETTA_WORKER_CONT", "LETTA_WORKER_COUNT"),
        ("LETTA_REDIS_ULR", "LETTA_REDIS_URL"),
        ("LETTA_WORKER_LEASE", "LETTA_WORKER_LEASE_S"),
        ("letta_use_redis_que", "LETTA_USE_REDIS_QUEUE"),
        ("LETTA_WEBHOOKS_SECRET", "LETTA_WEBHOOK_SECRET"),
    ],
)
def test_a_misspelled_variable_is_told_with_the_nearest(
    monkeypatch: pytest.MonkeyPatch, variable: str, nearest: str
) -> None:
    monkeypatch.setenv(variable, "hunter2")
    rows = told("unknown_variable")
    assert {name: row["nearest"] for name, row in rows.items()} == {variable.upper(): nearest}
    assert "hunter2" not in str(rows)


def test_misspellings_in_files_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "LETTA_REDIS_PASWORD").write_text("x")
    (tmp_path / ".env").write_text("LETTA_WORKER_CONT=3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LETTA_SECRETS_DIR", str(tmp_path))
    assert set(told("unknown_variable")) == {"LETTA_WORKER_CONT", "LETTA_REDIS_PASWORD"}


def test_variables_of_the_letta_server_are_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = [
        "PG_URI",
        "PG_HOST",
        "PG_PORT",
        "PG_USER",
        "PG_PASSWORD",
        "PG_DB",
        "PG_POOL_SIZE",
        "REDIS_HOST",
        "REDIS_PORT",
        "ENCRYPTION_KEY",
        "SERVER_PASSWORD",
        "SERVER_PASS",
        "DEBUG",
        "IMAGE",
        "SECRETS_DIR",
        "BASE_URL",
        "UVICORN_WORKERS",
        "LLM_API_KEY",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "DEFAULT_LLM_HANDLE",
    ]
    for name in theirs:
        monkeypatch.setenv(f"LETTA_{name}", "1")
    assert told("unknown_variable") == {}


@pytest.mark.parametrize(
    ("given", "unused"),
    [
        ({"redis_ca_file": "/ca.pem", "redis_url": "redis://h"}, {"redis_ca_file"}),
        ({"redis_ca_file": "/ca.pem", "cache_redis_url": "rediss://h"}, set()),
        ({"redis_password": "p", "redis_url": "redis://u:q@h"}, {"redis_password"}),
        ({"redis_password": "p", "redis_url": "embedded://"}, {"redis_password"}),
        ({"redis_password": "p/@", "redis_url": "redis://h"}, set()),
        ({"cache_redis_password": "p"}, {"cache_redis_password"}),
        ({"cache_redis_password": "p", "cache_redis_url": "redis://h"}, set()),
        ({"redis_sentinel_password": "p"}, {"redis_sentinel_password"}),
        (
            {"redis_sentinel_password": "p", "redis_url": "rediss+sentinel://a:1,b:2/service"},
            set(),
        ),
        ({"cache_local_share_objects": "true"}, {"cache_local_share_objects"}),
        ({"cache_local_share_objects": "true", "cache_local_ttl_s": "1"}, set()),
        (
            {"webhook_retry_delays_s": "1 2", "webhook_retry_base_s": "1"},
            {"webhook_retry_delays_s"},
        ),
        ({"webhook_key_file": "/key.pem"}, {"webhook_key_file"}),
        (
            {"webhook_breaker_failures": "0", "webhook_breaker_open_s": "9"},
            {"webhook_breaker_open_s"},
        ),
        ({"worker_max_crashes": "0", "worker_crash_window_s": "9"}, {"worker_crash_window_s"}),
    ],
)
def test_a_setting_without_effect_is_told(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], unused: set[str]
) -> None:
    for field, value in given.items():
        monkeypatch.setenv(variable_name(field), value)
    assert set(told("no_effect")) == {variable_name(field) for field in unused}


@pytest.mark.parametrize("build", [Settings, load_settings])
def test_a_misspelled_argument_is_refused(build: Any) -> None:
    with pytest.raises(SettingsError, match=r"worker_cont.*did you mean worker_count"):
        build(worker_cont=3)


def test_every_setting_is_read_somewhere() -> None:
    """A field that no code reads does nothing. Strings count: some fields are read by name."""
    read: set[str] = set()
    for package in ("cache", "worker", "letta_redis"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    read.add(node.attr)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    read.add(node.value)
    # Each becomes part of its server's URL.
    login = {
        f"{server}_{part}"
        for server in ("redis", "cache_redis")
        for part in ("username", "password")
    }
    assert Settings.model_fields.keys() - read - login == set()


def test_a_job_for_ended_webhooks_that_is_unknown_is_told() -> None:
    def warned(**given: Any) -> list[str]:
        settings = load_settings(worker_functions="tests.support.jobs:echo", **given)
        with capture_logs() as logs:
            warn_about_unknown_jobs(settings, build_functions(settings))
        return [f"{row['variable']} {row['job']} {row['nearest']}" for row in logs]

    assert warned(webhook_on_end="nosuch") == ["LETTA_WEBHOOK_ON_END nosuch "]
    assert warned(webhook_on_end="ecko") == ["LETTA_WEBHOOK_ON_END ecko echo"]
    assert warned(webhook_on_end="echo") == []
    assert warned() == []
    with pytest.raises(SettingsError, match="LETTA_WEBHOOK_ON_END: is not a job's name"):
        load_settings(webhook_on_end="no such")


async def test_a_settings_class_is_told_what_it_ignores() -> None:
    class Misspelled:
        functions: tuple[Any, ...] = ()
        max_job = 3
        on_startupp = None
        helper = "its own"

    settings = load_settings(worker_functions="tests.support.jobs:echo", worker_count=2)
    with capture_logs() as logs:
        warn_about_class(settings, Misspelled)
        warn_about_class(settings, build_worker_settings(settings))
    told_ = {row["variable"].rpartition(".")[2]: row.get("nearest") for row in logs}
    assert told_ == {
        "max_job": "max_jobs",
        "on_startupp": "on_startup",
        "LETTA_WORKER_FUNCTIONS": None,
    }


@pytest.mark.parametrize("feature", ["", "jobs", "webhooks", "llm", "dead"])
async def test_a_queue_that_is_off_refuses_every_call(feature: str) -> None:
    kinds = {"": JobQueue, "jobs": Jobs, "webhooks": Webhooks, "llm": LLMRequests}
    names = [name for name in vars(kinds.get(feature, DeadLetters)) if name[0] != "_"]
    assert len(names) > 2
    # A server that cannot be reached: no call may try.
    settings = load_settings(use_redis_queue=False, redis_url="redis://192.0.2.1:1")
    async with open_queue(settings) as queue:
        part = getattr(queue, feature) if feature else queue
        for name in set(names) - {"aclose"}:
            with pytest.raises(QueueDisabled, match="LETTA_USE_REDIS_QUEUE"):
                await _called(getattr(part, name))
    assert issubclass(QueueDisabled, QueueUnavailable)


async def _called(method: Any) -> Any:
    parameters = inspect.signature(method).parameters.values()
    needed = [p for p in parameters if p.default is p.empty]
    args = ["x" for p in needed if p.kind is p.POSITIONAL_OR_KEYWORD]
    named = {p.name: "x" for p in needed if p.kind is p.KEYWORD_ONLY}
    return await method(*args, **named)
