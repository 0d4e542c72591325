"""
Letta processes that are killed at a step of a callback.

Run with LETTA_PG_URI and LETTA_REDIS_URL. Each line on its input names a step, a user and
one of its runs: a fork of this process ends the run, and kills itself at that step, as
`kill -9` would. The answer is the signal that it died of.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from typing import Any, NamedTuple


class Step(NamedTuple):
    """Where to die: before or after a method."""

    owner: str
    method: str
    after: bool


# In the order of a callback. From "noted" on, a worker delivers while the process lives.
STEPS = {
    "committed": Step("letta_redis.plugin.outcomes:Outcomes", "expect", after=False),
    "expected": Step("letta_redis.plugin.outcomes:Outcomes", "expect", after=True),
    "stored": Step("letta_redis.plugin.outcomes:Outcomes", "store", after=True),
    "noted": Step("letta.services.run_manager:RunManager", "update_run_by_id_async", after=True),
    "outcome known": Step("letta_redis.plugin:rows", "write_outcome", after=False),
    "outcome written": Step("letta_redis.plugin:rows", "write_outcome", after=True),
}
_LONGEST_S = 120.0


def die_at(step: Step, run_id: str) -> None:
    """Kill this process when it comes there with this run: it looks after those of others, too."""
    from letta_redis.plugin.seams import resolve

    parent, name = resolve(step.owner)
    owner = getattr(parent, name)
    original = getattr(owner, step.method)

    async def dying(*args: Any, **kwargs: Any) -> Any:
        is_ours = any(run_id in str(value) for value in args)
        if is_ours and not step.after:
            os.kill(os.getpid(), signal.SIGKILL)
        done = await original(*args, **kwargs)
        if is_ours:
            os.kill(os.getpid(), signal.SIGKILL)
        return done

    setattr(owner, step.method, dying)


async def end_run(user_id: str, run_id: str) -> None:
    """End a run in a server with the plug-in, and stay until killed."""
    from letta.schemas.run import RunUpdate
    from letta.services.run_manager import RunManager
    from letta.services.user_manager import UserManager

    from letta_redis import install

    await install().runtime.start()
    user = await UserManager().get_actor_by_id_async(user_id)
    update = RunUpdate(status="completed", stop_reason="end_turn")
    await RunManager().update_run_by_id_async(run_id, update, actor=user)
    await asyncio.sleep(_LONGEST_S)


def main() -> None:
    import letta.server.server  # noqa: F401

    from letta_redis import install

    install()
    _say("ready")
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            die_at(STEPS[order["step"]], order["run"])
            asyncio.run(end_run(order["user"], order["run"]))
            os._exit(1)
        _, status = os.waitpid(child, 0)
        _say(json.dumps(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
