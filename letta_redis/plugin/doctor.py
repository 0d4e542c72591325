"""Checks the installed Letta server against the seams, for `letta-redis doctor`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version

from letta_redis.plugin.seams import Finding, Half

OK, DIFFERS, NO_LETTA = 0, 1, 2


def doctor(*, as_json: bool) -> int:
    """Print every seam and whether each half can be installed. Returns the exit code."""
    try:
        letta = version("letta")
    except PackageNotFoundError:
        print("letta is not installed in this environment", file=sys.stderr)  # noqa: T201
        return NO_LETTA
    # Letta logs to standard output from its first import on.
    with redirect_stdout(sys.stderr):
        from letta_redis.plugin.install import HALVES, blocked, findings

        found = findings()
        halves = {half: not blocked(half, found) for half in HALVES}
    if as_json:
        rows = [_row(finding) for finding in found]
        report = json.dumps({"letta": letta, "halves": halves, "seams": rows}, indent=2)
    else:
        report = _table(letta, halves, found)
    print(report)  # noqa: T201
    return OK if all(halves.values()) else DIFFERS


def _row(finding: Finding) -> dict[str, str | None]:
    return {
        "half": finding.feature.half or "both",
        "feature": finding.feature.name,
        "seam": finding.seam.target,
        "purpose": finding.seam.purpose,
        "problem": finding.problem,
    }


def _table(letta: str, halves: Mapping[Half, bool], found: list[Finding]) -> str:
    lines = [f"letta {letta}"]
    for finding in found:
        row = _row(finding)
        state = "differs" if finding.problem else "ok"
        lines.append(f"  {state:<7} {row['half']:<5} {finding.seam.target}: {finding.seam.purpose}")
        if finding.problem:
            lines.append(f"          it {finding.problem}")
    for half, installs in halves.items():
        lines.append(f"{half}: {'can be installed' if installs else 'stays off'}")
    return "\n".join(lines)
