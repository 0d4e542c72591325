"""Runs scripts as `python -c` does, in forks of a process that has imported what they import."""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["letta_redis", "worker", "worker.app.service", "worker.testing", "cache.opening"]
)


@dataclass(frozen=True, slots=True)
class Done:
    """What a script wrote, and its exit code."""

    returncode: int | None
    stdout: str
    stderr: str


def run_script(text: str, directory: Path, env: dict[str, str], *, timeout_s: float) -> Done:
    """Run a script in a directory, with warnings as errors; kill it after the timeout."""
    with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
        process = _FORKS.Process(target=_run, args=(text, directory, env, out.name, err.name))
        process.start()
        process.join(timeout_s)
        if process.exitcode is None:
            process.kill()
            process.join()
        return Done(process.exitcode, out.read().decode(), err.read().decode())


def _run(text: str, directory: Path, env: dict[str, str], out: str, err: str) -> None:
    for number, name in ((1, out), (2, err)):
        os.dup2(os.open(name, os.O_WRONLY | os.O_TRUNC), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(env)
    sys.path.insert(0, "")
    warnings.simplefilter("error")
    # arq closes its pool by redis-py's old name.
    warnings.filterwarnings("ignore", "Call to deprecated close", DeprecationWarning)
    sys.modules["__main__"] = ModuleType("__main__")
    exec(compile(text, "<string>", "exec"), vars(sys.modules["__main__"]))
