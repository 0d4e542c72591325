"""
Runs the drill of the compose file: `make compose-test`.

Exit codes: 0 all of it held; 1 something did not; 77 it could not run here, and nothing was tried.
"""

from __future__ import annotations

# ruff: noqa: T201  (a program that reports to its terminal)
import fcntl
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.containers.drill import Drill
from tests.containers.engine import Engine, Failed, lacking
from tests.containers.images import Images
from tests.containers.stack import OBSERVING, SERVICES, SHARING, Stack

ROOT = Path(__file__).resolve().parents[2]
NOT_RUN = 77
_START = time.monotonic()


def say(text: str) -> None:
    print(f"{time.monotonic() - _START:6.1f} s  {text}", flush=True)


def main() -> int:
    if found := lacking():
        print("compose-test was NOT RUN: nothing in compose/ was started.", file=sys.stderr)
        print(f"This machine lacks {'; '.join(found)}.", file=sys.stderr)
        return NOT_RUN
    cache = ROOT / ".cache" / "containers"
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two runs would remove each other's containers
        return _run(cache)


def _run(cache: Path) -> int:
    if (cache / "engine").exists():  # of a run that was killed
        Engine(cache / "engine").remove_everything()
    engine = Engine(cache / "engine")
    try:
        images = Images(engine, cache, say)
        images.get()
        for name, origin in images.origins.items():
            say(f"image {name}: {origin}")
        return _drill(engine)
    except Failed as exc:
        print(exc, file=sys.stderr)
        return 1
    finally:
        engine.remove_everything()


def _in_stack(
    engine: Engine,
    services: Sequence[str],
    run: Callable[[Drill], None],
    *,
    above: str | None = None,
) -> bool:
    with tempfile.TemporaryDirectory(prefix="letta-redis-compose-") as home:
        stack = Stack(engine, Path(home), above=above)
        drill = Drill(stack, say)
        try:
            stack.up(services)
            say(f"healthy: {', '.join(services)}")
            run(drill)
        except (Failed, AssertionError) as exc:
            print(f"failed: {exc}", file=sys.stderr)
            for service in services:
                print(f"-- {service}\n{stack.log(service)}", file=sys.stderr)
            return False
        finally:
            stack.down()
    ledger = drill.ledger
    say(
        f"delivered {len(ledger.webhooks)} webhooks, answered {len(ledger.requests)} LLM requests, "
        f"{ledger.reads} reads, {ledger.hits} from the cache, {ledger.stale} stale"
    )
    return True


def _drill(engine: Engine) -> int:
    if not (
        _in_stack(engine, (*SERVICES, *OBSERVING), Drill.run)
        and _in_stack(engine, (*SERVICES, *OBSERVING), Drill.run_encrypted, above="tls.yaml")
        and _in_stack(engine, SHARING, Drill.run_shared, above="single.yaml")
    ):
        return 1
    say("not run: Letta's own image, and compose/Dockerfile.letta on it (make letta-test runs it)")
    say(
        "not run: Grafana, which Debian lacks (a test checks its files and the dashboards' metrics)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
