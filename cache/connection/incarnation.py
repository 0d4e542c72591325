"""
Identifies the run of a server: by its run id, and by its replication id.

A restart changes the run id. A server that becomes the master changes the
replication id, also one that was the master before and has not restarted since:
meanwhile it copied a replica that may have missed invalidations.
"""

from __future__ import annotations

import asyncio
from hashlib import blake2b
from typing import Any

ASK = b"*2\r\n$4\r\nINFO\r\n$11\r\nreplication\r\n"
# A replaced master can hardly take over again within this time: before that, its own failure and
# that of its replica must be noticed.
ASK_EVERY_S = 1.0
# While values name another run, it is asked for this often.
_DOUBTED_S = 0.05


class Incarnation:
    """
    The run of the server at the other end of a connection.

    Args:
        server, replication: the server's INFO of these sections.
    """

    def __init__(self, server: bytes, replication: bytes) -> None:
        self.run_id = _field(server, b"run_id:")
        self.learn(replication)
        self.ask_at = self._asked_at = float("inf")  # of the loop's clock

    def follow(self, now: float) -> None:
        """Ask for the run again from time to time."""
        self._asked_at, self.ask_at = now, now + ASK_EVERY_S

    def doubt(self) -> None:
        """Ask soon: a value names another run, which may be a later one."""
        self.ask_at = min(self.ask_at, self._asked_at + _DOUBTED_S)

    def asked(self, loop: asyncio.AbstractEventLoop, now: float) -> asyncio.Future[Any]:
        """The call that gets the reply to `ASK`, and learns from it."""
        self.follow(now)
        call: asyncio.Future[Any] = loop.create_future()
        call.add_done_callback(self._answered)
        return call

    def _answered(self, call: asyncio.Future[Any]) -> None:
        if not call.cancelled() and not call.exception() and type(call.result()) is bytes:
            self.learn(call.result())

    def learn(self, replication: bytes) -> None:
        """Take the replication id from the server's INFO."""
        self.reign = _field(replication, b"master_replid:")
        self.digest = blake2b(self.run_id + self.reign, digest_size=8).digest()


def _field(info: bytes, name: bytes) -> bytes:
    return next((line[len(name) :] for line in info.splitlines() if line.startswith(name)), b"")


UNKNOWN = Incarnation(b"", b"")
