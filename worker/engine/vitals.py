"""Measures this process for its heartbeat: memory, CPU, lag of the event loop. Takes 20 to 30 us."""

from __future__ import annotations

import os
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_STATM = Path("/proc/self/statm")


class Vitals:
    """Compares each reading with the one before."""

    def __init__(self) -> None:
        self._version = _version()
        self._read_at = time.monotonic()
        self._cpu_s = _cpu_s()

    def read(self, lag_s: float) -> dict[str, Any]:
        """
        The fields of a heartbeat.

        lag_s: by how much the event loop was late with this one. cpu: share of one core since the
        last reading. memory_bytes: resident, 0 where the system does not tell.
        """
        now, cpu_s = time.monotonic(), _cpu_s()
        share = (cpu_s - self._cpu_s) / max(0.001, now - self._read_at)
        self._read_at, self._cpu_s = now, cpu_s
        return {
            "version": self._version,
            "memory_bytes": _memory_bytes(),
            "cpu": round(max(0.0, share), 3),
            "lag_s": round(max(0.0, lag_s), 4),
        }


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system


def _memory_bytes() -> int:
    try:
        resident = _STATM.read_bytes().split()[1]
    except OSError:  # not Linux
        return 0
    return int(resident) * os.sysconf("SC_PAGE_SIZE")


@cache
def _version() -> str:
    try:
        return version("letta-redis")
    except PackageNotFoundError:  # its files are used without the package
        return ""
