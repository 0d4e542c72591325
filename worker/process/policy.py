"""
Decides when an ended worker process is restarted, and when to give up. Pure.

A process ends in one of three ways. *Clean*: it drained (0) or recycled itself;
it is replaced, at most once per `min_interval_s`. *Bad configuration*: exit code
2 before it ran stably; a restart would not help. *Crash*: anything else; it is
replaced after an exponential backoff with full jitter. More than `max_crashes`
of all processes within `crash_window_s` end the service, so that systemd or the
container engine sees the failure and its alerts fire.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from random import Random

from worker.backoff import full_jitter_s


class ExitCode(IntEnum):
    """Exit codes of worker processes and of their supervisor."""

    DRAINED = 0
    CRASHED = 1  # of the supervisor: a crash loop, or a child that died while draining
    BAD_CONFIGURATION = 2
    FORCED = 3
    RECYCLE = 75  # sysexits' EX_TEMPFAIL: "start me again"; only between child and supervisor


class Ending(Enum):
    """What the end of a process means."""

    CLEAN = "clean"
    CRASH = "crash"
    BAD_CONFIGURATION = "bad_configuration"


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """
    Limits of restarts. Times are seconds.

    backoff_base_s, backoff_cap_s: ceilings of the first delay and of any delay.
    stable_after_s: a process that ran this long started well; it resets the backoff.
    min_interval_s: shortest time between two starts of a slot that ends cleanly.
    max_crashes, crash_window_s: more crashes than this within the window end the service.
    """

    backoff_base_s: float = 0.5
    backoff_cap_s: float = 30.0
    stable_after_s: float = 30.0
    min_interval_s: float = 1.0
    max_crashes: int = 5
    crash_window_s: float = 60.0


@dataclass(frozen=True, slots=True)
class SupervisorOptions:
    """
    Limits of the parent. Times are seconds.

    shutdown_grace_s: longest drain of a child.
    kill_margin_s: time beyond the grace, or after a second signal, before children are killed.
    heartbeat_timeout_s: time without a heartbeat after which a child is killed, and longest start
        of the fork server with all its imports. 0 switches the watch off, for a debugger.
    restart: when ended children are replaced, and when the parent gives up.
    """

    shutdown_grace_s: float = 30.0
    kill_margin_s: float = 5.0
    heartbeat_timeout_s: float = 30.0
    restart: RestartPolicy = field(default_factory=RestartPolicy)


def decide_restart(exit_code: int, uptime_s: float, policy: RestartPolicy) -> Ending:
    """Return the meaning of an exit code; a negative one is the signal that killed the process."""
    if exit_code in (ExitCode.DRAINED, ExitCode.RECYCLE):
        return Ending.CLEAN
    if exit_code == ExitCode.BAD_CONFIGURATION and uptime_s < policy.stable_after_s:
        return Ending.BAD_CONFIGURATION
    return Ending.CRASH


class SlotHistory:
    """Counts one slot's consecutive crashes, which set the delay of its next start."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self.crashes_in_a_row = 0

    def wait_s(self, ending: Ending, uptime_s: float, rng: Random) -> float:
        """Return the delay after a process of this slot ended after `uptime_s`, seconds."""
        policy = self._policy
        if ending is Ending.CLEAN or uptime_s >= policy.stable_after_s:
            self.crashes_in_a_row = 0
        if ending is Ending.CLEAN:
            return max(0.0, policy.min_interval_s - uptime_s)
        self.crashes_in_a_row += 1
        return full_jitter_s(
            self.crashes_in_a_row,
            base_s=policy.backoff_base_s,
            cap_s=policy.backoff_cap_s,
            rng=rng.random,
        )


class CrashWindow:
    """Counts the crashes of all slots within the window."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._times: deque[float] = deque(maxlen=policy.max_crashes + 1)

    def note(self, now: float) -> bool:
        """Count a crash at `now` (monotonic seconds); return whether there were too many."""
        self._times.append(now)
        full = len(self._times) > self._policy.max_crashes
        return full and now - self._times[0] <= self._policy.crash_window_s
