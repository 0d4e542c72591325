"""Starts `letta-workers`. Ctrl-C during its imports ends it without a traceback."""

from __future__ import annotations


def main() -> None:
    try:
        from letta_redis.worker.cli import main as run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None
