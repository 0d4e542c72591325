"""
Decides when buffered commands are written: behind the callers that send them, in one tick.

Who gets a reply runs next, and often sends its next command at once. So each receipt of
replies schedules a flush behind the callers that it wakes, and the last flush of a tick
of the event loop writes. A command of nobody's reply is written in the next tick.

The nodes of a cluster share an outbox. Their replies arrive a little apart, and each
would be followed by a small write to every node. So while replies of a node are still
to come, it waits for one more tick.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Outbox:
    """
    The writes of one connection, or of those to the nodes of a cluster.

    Args:
        patient: whether to wait for one more tick, because replies are to come.
    """

    def __init__(self, patient: Callable[[], bool] = lambda: False) -> None:
        self._patient = patient
        self._flushes: list[Callable[[], None]] = []
        self._due = 0  # calls of _flush that the loop has before it
        self._has_waited = False

    def add(self, flush: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        """Call `flush`, which writes the commands of a connection, with the next flush."""
        if not self._due:
            self.flush_soon(loop)
        self._flushes.append(flush)

    def flush_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        """Flush behind what the loop has to call already."""
        loop.call_soon(self._flush, loop)
        self._due += 1

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due -= 1
        if self._due or not self._flushes:
            return
        if not self._has_waited and self._patient():
            self._has_waited = True
            self.flush_soon(loop)
            return
        self._has_waited = False
        flushes, self._flushes = self._flushes, []
        for flush in flushes:
            flush()
