"""Converts settings into the supervisor's options. Imports nothing that only its children need."""

from __future__ import annotations

from settings import Settings
from worker.process.policy import RestartPolicy, SupervisorOptions


def supervisor_options(settings: Settings) -> SupervisorOptions:
    return SupervisorOptions(
        shutdown_grace_s=settings.worker_shutdown_grace_s,
        heartbeat_timeout_s=settings.worker_heartbeat_timeout_s,
        restart=RestartPolicy(
            max_crashes=settings.worker_max_crashes,
            crash_window_s=settings.worker_crash_window_s,
        ),
    )
