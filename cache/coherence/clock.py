"""What time it is for the server, whose clock times what it stores."""

from __future__ import annotations

import time


class Clock:
    """The server's time, from this process's clock and the difference last seen."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def now_ms(self) -> int:
        return int((time.time() + self._ahead_s) * 1000)

    def learn(self, server_us: int) -> None:
        self._ahead_s = server_us / 1e6 - time.time()
