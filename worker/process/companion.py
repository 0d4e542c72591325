"""Keeps one more process running beside the supervisor, and ends it with the supervisor."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from typing import Self

from cache.logs import get_logger

log = get_logger(__name__)

_FIRST_WAIT_S, _MOST_WAIT_S = 1.0, 30.0
_GRACE_S = 10.0


class Companion:
    """
    Runs a command while the block runs, and restarts it with growing delays when it ends.

    The command must end when its standard input closes, so that it never outlives this
    process. It has a session of its own: a terminal's Ctrl-C does not reach it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._keep, name="companion", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        with self._lock:
            self._over.set()
            process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
            try:
                process.wait(_GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join(_GRACE_S)

    def _keep(self) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._over.is_set():
            with self._lock:
                if self._over.is_set():
                    return
                process = self._process = subprocess.Popen(  # noqa: S603  (our own command)
                    self._command, stdin=subprocess.PIPE, start_new_session=True
                )
            with process:  # closes its standard input
                code = process.wait()
            if self._over.is_set():
                return
            log.warning("companion.ended", pid=process.pid, exit_code=code, restart_in_s=wait_s)
            self._over.wait(wait_s)
            wait_s = min(2 * wait_s, _MOST_WAIT_S)
