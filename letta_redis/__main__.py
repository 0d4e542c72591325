"""The command line of the plug-in, `letta-redis` and `python -m letta_redis`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command. Exits with its code."""
    chosen = _parser().parse_args(arguments)
    try:
        code = _run(chosen)
    except KeyboardInterrupt:
        code = 130
    raise SystemExit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="letta-redis", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    server = commands.add_parser("server", help="run the Letta server with the plug-in")
    server.add_argument("--host", default="localhost", help="address to listen on")
    server.add_argument("--port", type=int, default=8283, help="port to listen on")
    server.add_argument("--secure", action="store_true", help="ask for Letta's server password")

    doctor = commands.add_parser("doctor", help="check whether this Letta server is one we know")
    doctor.add_argument("--json", action="store_true", help="print JSON")

    switch = commands.add_parser("switch", help="switch a half on or off in every server")
    switch.add_argument("half", choices=["agent-cache", "redis-queue"])
    switch.add_argument("state", choices=["on", "off", "default"], help="default: as the settings")
    return parser


def _run(chosen: argparse.Namespace) -> int:
    if chosen.command == "server":
        from letta_redis.plugin.serving import serve

        serve(chosen.host, chosen.port, secure=chosen.secure)
        return 0
    if chosen.command == "doctor":
        from letta_redis.plugin.doctor import doctor

        return doctor(as_json=chosen.json)
    return _switch(chosen.half.replace("-", "_"), chosen.state)


def _switch(half: str, state: str) -> int:
    from redis.exceptions import RedisError

    from letta_redis.plugin.switches import switch
    from settings import SettingsError, get_settings
    from worker.terminal import printable_lines

    try:
        asyncio.run(switch(get_settings(), half, state))
    except (SettingsError, RedisError, OSError) as exc:
        print(printable_lines(str(exc)), file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    main()
