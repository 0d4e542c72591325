"""
Runs `run_supervisor` in its own process, with JSON logs on standard output.

    python -m tests.support.supervise '{"shutdown_grace_s": 5, ...}' COUNT COMMAND...
"""

from __future__ import annotations

import json
import sys

import structlog

from worker.process.policy import RestartPolicy, SupervisorOptions
from worker.process.supervisor import run_supervisor


def main() -> None:
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer()],
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
    )
    options = json.loads(sys.argv[1])
    restart = RestartPolicy(**options.pop("restart", {}))
    supervisor_options = SupervisorOptions(**options, restart=restart)
    sys.exit(run_supervisor(sys.argv[3:], int(sys.argv[2]), supervisor_options))


if __name__ == "__main__":
    main()
