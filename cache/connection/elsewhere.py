"""
Recognizes errors of a server that refuses a command which another server may serve.

The server refuses such a command before it runs, so the call raises `Ended` and is sent
again. Where there is only one server, the same errors are answers for their callers.
"""

from __future__ import annotations

from typing import Any

from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from cache.connection.protocol import Elsewhere, Ended
from cache.connection.replies import Replies

# redis-py drops the first word if it has a class for it, which depends on its version.
_WORDS: dict[type[Exception], str] = {
    AskError: "ASK",
    ClusterDownError: "CLUSTERDOWN",
    MasterDownError: "MASTERDOWN",
    MovedError: "MOVED",
    ReadOnlyError: "READONLY",
    TryAgainError: "TRYAGAIN",
}


def whole_text(error: Exception) -> str:
    """The server's text, with its first word."""
    text, word = str(error), _WORDS.get(type(error))
    return text if word is None or text.startswith(word) else f"{word} {text}"


class LeavingReplies(Replies):
    """
    Reads the replies of one server among several.

    Class attributes: first words of the errors that close the connection (`elsewhere`), and of
    those that keep it open (`later`).
    """

    elsewhere: frozenset[str]
    later: frozenset[str] = frozenset()

    def _answer(self, reply: Any) -> None:
        text = whole_text(reply) if isinstance(reply, ResponseError) else ""
        word = text.partition(" ")[0]
        if word not in self.elsewhere | self.later:
            super()._answer(reply)
            return
        call, _ = self.calls.popleft()
        if not call.done():
            call.set_exception(Ended(text))
        if word in self.elsewhere:
            raise Elsewhere(text)
