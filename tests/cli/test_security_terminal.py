"""What others chose cannot command the operator's terminal: commands, errors and logs."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Callable
from typing import Any

import click
import pytest
import structlog
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from redis.exceptions import ResponseError

from cache.encoding import codec
from letta_redis.__main__ import main as letta_redis_main
from tests.support.queues import open_queue, stores_of
from tests.support.workers import quick_settings
from worker import Priority
from worker.cli.commands import main
from worker.errors import NotFound
from worker.keys import EngineKeys
from worker.logs import configure_logging
from worker.queue.store import job_body
from worker.terminal import printable, printable_lines

pytestmark = pytest.mark.integration

# Clears the screen, renames the window, writes on the clipboard, hides, turns around, forges lines.
EVIL = "a\x1b[2J\x1b]0;owned\x07\x1b]52;c;cm0=\x07\x9b31m\rb\u202ec\u200bd\x08\x7f\x00e\nforged: line\u2028f"


def is_harmless(output: str) -> bool:
    return all(line.isprintable() for line in output.split("\n"))


@given(st.text(st.characters(codec=None)))
def test_nothing_but_printable_characters_is_left(text: str) -> None:
    assert printable(text).isprintable()
    assert is_harmless(printable_lines(text))
    assert printable_lines(text).count("\n") == text.count("\n")


@given(st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"], include_characters=" ")))
def test_what_is_printable_stays_as_it_is(text: str) -> None:
    assert printable(text) == text


@pytest.fixture
def shell(private_valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Runs a command; its output, both streams."""
    settings = quick_settings(private_valkey_url)
    for name in ("support", "commands", "cache", "health"):
        monkeypatch.setattr(f"worker.cli.{name}.load_settings", lambda **_: settings)
    # What a forked process prints, the runner would not see.
    monkeypatch.setattr("worker.process.aside.run_aside", lambda work: work())
    asyncio.run(_fill(settings))

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, list(arguments))
        assert result.exception is None or isinstance(result.exception, SystemExit), result.output
        return result.output

    return run


async def _fill(settings: Any) -> None:
    """Odd text wherever a writer of the server can leave it: other people's ids and errors."""
    async with open_queue(settings) as queue:
        client, keys = stores_of(queue).client, stores_of(queue).keys
        id_ = await queue.send_webhook("https://example.com/", {}, event_type="x", webhook_id="m1")
        odd = {"url": EVIL, "event_type": EVIL, "error": EVIL, "endpoint_id": EVIL}
        await client.hset(keys.webhook(id_), mapping={**odd, "state": "dead", "ended_at": 1})
        attempt = codec.encode([1, 500, EVIL, 3, EVIL.encode()])
        await client.rpush(keys.webhook_attempts(id_), attempt)
        await client.zadd(keys.webhook_ended("dead"), {id_: 1})
        await client.hset(
            keys.dead_job(EVIL),
            mapping={
                "name": EVIL, "reason": EVIL, "error": EVIL, "tries": 1, "queue": 1, "died": 1,
                "body": b"x",
            },
        )  # fmt: skip
        await client.zadd(keys.dead, {EVIL: 1})
        await client.hset(
            keys.webhook_endpoint(EVIL), mapping={"name": EVIL, "disabled": 1, "reason": EVIL}
        )
        await client.zadd(keys.webhook_disabled, {EVIL: 1})
        await client.xadd(keys.webhook_events, {"kind": EVIL, "endpoint": EVIL})
        await client.zadd(keys.workers, {"w": 1})
        await client.set(keys.worker("w"), json.dumps({"worker_id": EVIL}))
        body_of_job = job_body(EVIL, [EVIL], {}, now_ms=1)
        await stores_of(queue).jobs.put(
            EVIL, body_of_job, priority=Priority.DEFAULT, delay_ms=0, due_ms=None
        )
        await client.zadd(keys.history.index, {f"default:{EVIL}": int(time.time() // 60)})
        odd_schedule = codec.encode(
            {
                "f": EVIL,
                "a": [],
                "k": {},
                "p": "default",
                "every": 60_000,
                "cron": None,
            }
        )
        await client.hset(EngineKeys(keys).schedule_jobs, EVIL, odd_schedule)
        await client.zadd(EngineKeys(keys).schedules, {EVIL: 10**13})
        await client.hset(EngineKeys(keys).cron, EVIL, 1)
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        await queue.submit_llm_request(body, provider="openai", endpoint="chat/completions")
        groups = await client.hgetall(keys.llm_groups)
        for group, row in groups.items():
            names = codec.decode(row)
            await client.hset(keys.llm_groups, group, codec.encode([*names[:2], EVIL]))


COMMANDS: list[tuple[str, ...]] = [
    ("webhooks", "show", "m1"), ("webhooks", "list"), ("webhooks", "endpoints"), ("endpoints",),
    ("webhooks", "replay", "m1"), ("webhooks", "show", EVIL), ("webhooks", "ping", EVIL),
    ("webhooks", "endpoint", "--endpoint-id", EVIL), ("webhooks", "list", "--since", EVIL),
    ("dead", "list"), ("dead", "retry", EVIL), ("dead", "retry", "--since", EVIL),
    ("batches", "list"), ("batches", "show", EVIL), ("batches", "cancel", EVIL),
    ("batches", "show", "a", EVIL),
    ("cache", "stats"), ("cache", "invalidate", EVIL),
    ("cache", "warm", "--loader", EVIL, "a"), ("run", "--settings", EVIL),
    ("jobs", "list"), ("jobs", "show", EVIL), ("workers",), ("schedules",), ("metrics",),
    ("health", "--any"), ("status",), (EVIL,), ("status", f"--{EVIL}"),
]  # fmt: skip
# Run one after the other on one server: a server for each would take long.
OTHERS: list[tuple[str, ...]] = [
    ("pause", "--function", EVIL), ("pause",), ("resume", "--function", EVIL), ("resume",),
    ("jobs", "abort", EVIL), ("dead", "purge", EVIL), ("dead", "purge", "--before", EVIL),
    ("jobs", "run-now", EVIL), ("jobs", "add", EVIL), ("jobs", "change", "run", "--id-prefix", EVIL, "--yes"),
    ("dead", "change", "retry", "--error", EVIL, "--yes"), ("schedules", "run", EVIL),
    ("batches", "came", EVIL), ("batches", "retry", EVIL), ("batches", "flush"),
    ("webhooks", "enable", "--endpoint-id", EVIL), ("webhooks", "disable", "--endpoint-id", EVIL),
    ("webhooks", "retry", EVIL), ("webhooks", "enable", EVIL), ("web", "--listen", EVIL),
    ("completion", EVIL), ("schedules", "off", EVIL), ("schedules", "on", EVIL), ("schedules", "crons"),
]  # fmt: skip
# Run until they are stopped, and print what the log prints.
NOT_HERE = {"demo", "child"}


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda command: "-".join(command).replace(EVIL, "odd")
)
@pytest.mark.parametrize("form", ["lines", "json"])
def test_a_command_shows_nothing_but_printable_text(
    shell: Callable[..., str], command: tuple[str, ...], form: str
) -> None:
    output = shell(*command, *(["--json"] if form == "json" and command[0] != "run" else []))
    assert output
    assert is_harmless(output), output
    assert "\nforged: line" not in output


def test_the_other_commands_show_nothing_but_printable_text(shell: Callable[..., str]) -> None:
    for command in OTHERS:
        output = shell(*command)
        assert output, command
        assert is_harmless(output), output
        assert "\nforged: line" not in output, command


def test_every_command_is_among_them() -> None:
    tried = {" ".join(command) for command in [*COMMANDS, *OTHERS]}
    for path in commands_below(main):
        found = path in tried or any(each.startswith(f"{path} ") for each in tried)
        assert found or path in NOT_HERE, path


def commands_below(group: click.Group, *names: str) -> list[str]:
    found = []
    for name, command in group.commands.items():
        path = (*names, name)
        nested = isinstance(command, click.Group)
        found += commands_below(command, *path) if nested else [" ".join(path)]  # type: ignore[arg-type]
    return found


def test_the_odd_text_was_there_to_be_shown(shell: Callable[..., str]) -> None:
    for command in (
        ("webhooks", "show", "m1"), ("webhooks", "list"), ("webhooks", "endpoints"),
        ("dead", "list"), ("batches", "list"), ("health", "--any"), ("jobs", "list"), ("schedules",),
        ("schedules", "crons"),
    ):  # fmt: skip
        assert r"a\x1b[2J" in shell(*command), command


def test_the_plug_ins_command_shows_an_error_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def refused(*_: object) -> None:
        raise ResponseError(EVIL)

    monkeypatch.setattr("letta_redis.plugin.switches.switch", refused)
    with pytest.raises(SystemExit):
        letta_redis_main(["switch", "agent-cache", "off"])
    shown = capsys.readouterr().err
    assert shown.startswith(r"a\x1b[2J")
    assert is_harmless(shown)


def test_an_error_of_the_server_is_shown_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_work: object) -> None:
        raise NotFound(EVIL)

    monkeypatch.setattr("worker.cli.dead.with_queue", fail)
    output = CliRunner().invoke(main, ["dead", "list"]).output
    assert output.startswith(r"error: a\x1b[2J")
    assert is_harmless(output)


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_log_line_shows_nothing_but_printable_text(
    capsys: pytest.CaptureFixture[str], form: str
) -> None:
    configure_logging("INFO", form)
    log = structlog.get_logger("t")
    log.info("plain", url=EVIL, many=[EVIL], nested={EVIL: EVIL}, error=ValueError(EVIL))
    logging.getLogger("other").warning("odd %s", EVIL)
    try:
        raise ValueError(EVIL)
    except ValueError:
        log.exception("failed")
    shown = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().err)  # the renderer's own colors
    assert "Traceback" in shown
    assert is_harmless(shown), shown
    assert "\nforged" not in shown
