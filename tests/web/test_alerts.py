"""Alerts and dashboards name metrics that exist, and each alert has a test and a section."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from arq.worker import func
from prometheus_client.parser import text_string_to_metric_families

from tests.support.command_lines import command_lines, problem_of
from tests.support.engine import burst
from tests.support.llm import ENDPOINT, body
from tests.support.queues import queue_of, stores_of
from tests.support.web import asking
from worker import JobQueue
from worker.llm.answers import Answer
from worker.llm.states import BatchState

ROOT = Path(__file__).parents[2]
RULES, TESTS = (ROOT / "ops" / "prometheus" / name for name in ("rules.yml", "rules_test.yml"))
DASHBOARDS = sorted((ROOT / "ops" / "grafana").glob("*.json"))
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
# Those that Prometheus adds.
ADDED = {"job", "instance"}


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> dict[str, str]:
    """Where each expression stands, and what it is."""
    return {rule["alert"]: rule["expr"] for rule in alerts()} | dashboard_expressions()


def dashboard_expressions() -> dict[str, str]:
    found = {}
    for path in DASHBOARDS:
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            for target in panel["targets"]:
                found[f"{path.name}: {panel['title']} {target['refId']}"] = target["expr"]
    return found


def problems(where: str, expr: str, known: dict[str, dict[str, set[str]]]) -> list[str]:
    """
    What an expression names that is not in `known`: metric -> label -> values.

    Each value that a matcher accepts has to exist; the labels of `by` have to be those of a metric
    of the expression.
    """
    found, labels = [], set(ADDED)
    for name, matchers in re.findall(r"\b(letta_\w+)(\{[^}]*\})?", expr):
        if name not in known:
            found.append(f"{where}: no metric {name}")
            continue
        labels |= set(known[name])
        for label, sign, value in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', matchers):
            accepted = set(value.split("|") if "~" in sign else [value])
            missing = accepted - known[name].get(label, set())
            found += [f"{where}: {name} has no {label}={each!r}" for each in sorted(missing)]
    for names in re.findall(r"\bby \(([^)]*)\)", expr):
        wanted = {each.strip() for each in names.split(",")}
        found += [f"{where}: no label {each}" for each in sorted(wanted - labels)]
    return found


async def quick(ctx: dict[str, Any]) -> None: ...


async def answer_one(queue: JobQueue) -> None:
    """Let an LLM request end."""
    id_ = await queue.submit_llm_request(
        body("openai", "q"), provider="openai", endpoint=ENDPOINT["openai"], dedupe=False
    )
    await stores_of(queue).requests.answer(id_, Answer(body={}), run_s=0.1)


@pytest.mark.integration
async def test_alerts_and_dashboards_name_metrics_that_exist(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("quick")
    await burst(client, prefix, [func(quick, name="quick")])
    await answer_one(queue)
    async with asking(queue) as web:
        text = (await web.get("/metrics")).text
    known: dict[str, dict[str, set[str]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for label, value in sample.labels.items():
                known.setdefault(sample.name, {}).setdefault(label, set()).add(value)
            known.setdefault(sample.name, {})
    found = [each for where, expr in expressions().items() for each in problems(where, expr, known)]
    assert found == []
    states = known["letta_llm_batch_idle_seconds"]["state"]
    assert states == {state.value for state in BatchState if not state.is_end}


@pytest.mark.unit
def test_names_that_do_not_exist_are_found() -> None:
    known = {"letta_jobs": {"state": {"dead"}}}
    assert problems("x", 'max by (job) (letta_jobs{state="dead"})', known) == []
    assert problems("x", 'sum by (task) (letta_jobs{state=~"dead|gone"}) + letta_other', known) == [
        "x: letta_jobs has no state='gone'",
        "x: no metric letta_other",
        "x: no label task",
    ]


@pytest.mark.unit
def test_the_panels_of_a_dashboard_neither_overlap_nor_share_an_id() -> None:
    for path in DASHBOARDS:
        panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
        taken = [
            (column, row)
            for place in (panel["gridPos"] for panel in panels)
            for column in range(place["x"], place["x"] + place["w"])
            for row in range(place["y"], place["y"] + place["h"])
        ]
        assert len(set(taken)) == len(taken)
        assert max(column for column, _ in taken) < 24
        assert len({panel["id"] for panel in panels}) == len(panels)


@pytest.mark.unit
def test_each_alert_has_a_test_and_a_section() -> None:
    names = [rule["alert"] for rule in alerts()]
    fired = {
        case["alertname"]
        for test in yaml.safe_load(TESTS.read_text(encoding="utf-8"))["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    quiet = {
        case["alertname"]
        for test in yaml.safe_load(TESTS.read_text(encoding="utf-8"))["tests"]
        for case in test["alert_rule_test"]
        if not case["exp_alerts"]
    }
    sections = re.findall(r"^### (\w+)\n(.*?)(?=^#)", RUNBOOK, re.MULTILINE | re.DOTALL)
    assert fired == quiet == set(names)
    assert [name for name, _ in sections] == names
    for name, section in sections:
        for part in ("**Meaning.**", "**Look.**", "**Do.**"):
            assert part in section, (name, part)
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/runbook.md#{rule['alert'].lower()}"


@pytest.mark.unit
def test_the_runbook_names_commands_that_exist() -> None:
    lines = command_lines(RUNBOOK)
    assert lines
    assert [found for line in lines if (found := problem_of(line)) is not None] == []
    assert problem_of("jobs list --stat x") is not None
    assert problem_of("jobs lst") is not None


@pytest.mark.unit
def test_promtool_fires_each_alert_and_leaves_a_well_fleet_alone() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is absent: install Debian's package prometheus")
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(TESTS)]):
        done = subprocess.run([promtool, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
