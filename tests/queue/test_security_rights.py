"""A user who may not run every command of the scripts is refused before one of them writes a half."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from redis.exceptions import ResponseError

import worker
from tests.support.options import options_of
from tests.support.queues import queue_of
from tests.support.users import set_rights
from worker import QueueUnavailable
from worker.queue.rights import COMMANDS, require_rights

pytestmark = pytest.mark.integration


async def test_every_command_of_the_scripts_is_asked_for(owner: Any) -> None:
    listed = await owner.eval("return redis.call('COMMAND', 'LIST')", 0)
    known = {name.decode().upper() for name in listed}
    home = Path(worker.__file__ or "").parent
    sources = [path.read_text(encoding="utf-8") for path in home.rglob("lua/*.lua")]
    used = {word for text in sources for word in re.findall(r"'([A-Z]+)'", text)} & known
    assert used - {"INFO"} == set(COMMANDS)


async def test_each_denied_command_is_named(owner: Any, weak: Any) -> None:
    await require_rights(weak, "arq:queue")
    for command in COMMANDS:
        await set_rights(owner, f"-{command}")
        with pytest.raises(ResponseError, match=rf"may not run {command} on arq:queue|NOPERM"):
            await require_rights(weak, "arq:queue")
        await set_rights(owner, f"+{command}")


async def test_a_denied_command_refuses_the_first_enqueue(owner: Any, weak: Any) -> None:
    await set_rights(owner, "-zadd")
    queue = queue_of(weak, "arq:", options_of())
    with pytest.raises(QueueUnavailable, match="ZADD"):
        await queue.enqueue("f", job_id="a")
    assert await owner.dbsize() == 0
    await set_rights(owner, "+zadd")
    assert (await queue.enqueue("f", job_id="a")).is_new
