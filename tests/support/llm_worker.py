"""
A worker that kills itself when a batch reaches a point: `python -m tests.support.llm_worker`.

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
from worker.app import composition
from worker.app.service import build_worker
from worker.llm.context import LLMContext

_build = composition.build_llm_context


def deadly(point: str) -> Any:
    def reached(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def build(settings: Settings, stores: composition.Stores) -> LLMContext:
        return replace(_build(settings, stores), reached=reached)

    return build


if __name__ == "__main__":
    composition.build_llm_context = deadly(sys.argv[1])
    asyncio.run(build_worker(load_settings(**json.loads(sys.argv[2]))).run())
