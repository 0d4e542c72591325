"""Implements `letta-workers pause` and `resume`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import click

from worker.cli.support import json_option, show, with_queue
from worker.errors import InvalidArgument
from worker.queue.pauses import Pause
from worker.queue.priority import Priority


def _target(command: Callable[..., Any]) -> Callable[..., Any]:
    choices = click.Choice([priority.value for priority in Priority])
    command = click.option("--priority", type=choices, help="All jobs of this priority.")(command)
    return click.option("--function", help="All jobs of this function.")(command)


@click.command()
@_target
@json_option
def pause(function: str | None, priority: str | None, as_json: bool) -> None:
    """Keep a function's or a priority's jobs from running, in all workers; without one, list the pauses.

    Running jobs go on. Jobs are still accepted, and wait until the resume.

    \b
    Examples:
      letta-workers pause --function send_mail
      letta-workers pause --priority low
      letta-workers pause --json            # what is paused
    """
    if function is None and priority is None:
        pauses: list[Pause] = with_queue(lambda queue: queue.paused())
        lines = [_line(each) for each in pauses] or ["nothing is paused"]
        show([asdict(each) for each in pauses], as_json, lambda: lines)
        return
    level = None if priority is None else Priority(priority)
    is_new = with_queue(lambda queue: queue.pause(function=function, priority=level))
    _report("paused", function or priority, is_new, as_json)


@click.command()
@_target
@json_option
def resume(function: str | None, priority: str | None, as_json: bool) -> None:
    """End a pause: the jobs that waited are due since they were due at first.

    \b
    Examples:
      letta-workers resume --function send_mail
      letta-workers resume --priority low --json
    """
    if function is None and priority is None:
        raise InvalidArgument("give --function or --priority; `letta-workers pause` lists pauses")
    level = None if priority is None else Priority(priority)
    is_new = with_queue(lambda queue: queue.resume(function=function, priority=level))
    _report("resumed", function or priority, is_new, as_json)


def _report(done: str, name: str | None, is_new: bool, as_json: bool) -> None:
    as_before = f"{name} was {'' if done == 'paused' else 'not '}paused"
    line = f"{done} {name}" if is_new else as_before
    show({done: name, "changed": is_new}, as_json, lambda: [line])


def _line(pause: Pause) -> str:
    kind = "priority" if pause.function is None else "function"
    since = pause.since.isoformat(timespec="seconds")
    return f"{kind} {pause.function or pause.priority}  since {since}  waiting={pause.waiting}"
