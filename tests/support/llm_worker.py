"""
A worker that dies by SIGKILL when a batch reaches a point: `python -m tests.support.llm_worker`.

Arguments: the point (`batch.posted`), and the settings as JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from dataclasses import replace
from typing import Any

from settings import Settings, load_settings
from worker.app import building
from worker.app.main import build_worker
from worker.deps import Deps

_build_deps = building.build_deps


def deadly(point: str) -> Any:
    def reached(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def build_deps(settings: Settings, client: Any) -> Deps:
        return replace(_build_deps(settings, client), reached=reached)

    return build_deps


if __name__ == "__main__":
    building.build_deps = deadly(sys.argv[1])
    asyncio.run(build_worker(load_settings(**json.loads(sys.argv[2]))).run())
