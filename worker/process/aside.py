"""Runs a function in its own process, so that this one does not keep its imports."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable


def run_aside(work: Callable[[], int]) -> int:
    """
    Run a function in a forked process and return its result, an exit code.

    1 if it raises, with a traceback; negative if a signal ended it. Call this before any thread
    or event loop starts.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            code = work()
        except Exception:  # noqa: BLE001  (the process ends here, whatever it was)
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)
