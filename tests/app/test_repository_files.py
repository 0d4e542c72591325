"""CI, templates and hooks are valid, and run the commands of README and Makefile."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.servers import run

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
GITHUB = ROOT / ".github"
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
SCHEMAS = {
    "workflows/ci.yml": "vendor.github-workflows",
    "dependabot.yml": "vendor.dependabot",
    "ISSUE_TEMPLATE/config.yml": "vendor.github-issue-config",
    "ISSUE_TEMPLATE/bug.yml": "vendor.github-issue-forms",
    "ISSUE_TEMPLATE/feature.yml": "vendor.github-issue-forms",
}


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def job() -> Any:
    (only,) = read_yaml(GITHUB / "workflows" / "ci.yml")["jobs"].values()
    return only


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_file_for_github_satisfies_its_schema(name: str) -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", SCHEMAS[name]]
    done = run([*command, str(GITHUB / name)])
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_yaml_file_for_github_has_a_schema() -> None:
    assert {str(path.relative_to(GITHUB)) for path in GITHUB.rglob("*.y*ml")} == set(SCHEMAS)


def test_ci_runs_exactly_the_two_commands_of_the_readme(job: Any) -> None:
    section = README.split("## Try it")[1]
    (block,) = re.findall(r"```console\n(.*?)```", section.split("\n## ")[0], re.DOTALL)
    commands = [line.split("#")[0].strip() for line in block.strip().splitlines()]
    assert len(commands) == 2
    assert [step["run"] for step in job["steps"] if "run" in step] == commands


def test_ci_tests_every_python_that_the_package_names(job: Any) -> None:
    prefix = "Programming Language :: Python :: "
    named = [name.removeprefix(prefix) for name in PROJECT["classifiers"] if prefix in name]
    assert job["strategy"]["matrix"]["python"] == named
    (setup,) = (step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert setup["with"]["python-version"] == "${{ matrix.python }}"


def test_the_cache_of_ci_changes_with_the_constraints(job: Any) -> None:
    (setup,) = (step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert setup["with"]["cache"] == "pip"
    paths = setup["with"]["cache-dependency-path"].split()
    assert "constraints.txt" in paths
    assert all((ROOT / path).is_file() for path in paths)


def test_dependabot_watches_existing_manifests() -> None:
    expected = {
        "pip": "pyproject.toml",
        "github-actions": ".github/workflows",
        "docker": "Dockerfile",
        "npm": "package.json",
    }
    updates = read_yaml(GITHUB / "dependabot.yml")["updates"]
    assert {update["package-ecosystem"] for update in updates} == set(expected)
    for update in updates:
        folder = ROOT / update["directory"].lstrip("/")
        assert (folder / expected[update["package-ecosystem"]]).exists(), update


def test_hooks_are_local_and_run_what_make_check_runs() -> None:
    (repository,) = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        program, *rest = hook["entry"].split()
        assert program.startswith(".venv/bin/")
        command = " ".join([Path(program).name, *rest]).replace(" --force-exclude", "")
        assert f"$(BIN)/{command}" in makefile, command


@pytest.mark.parametrize("folder", ["tests", "examples"])
def test_nothing_sleeps_for_a_literal_time(folder: str) -> None:
    literal = re.compile(r"\bsleep\((?!0[,)])[\d.]")
    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if literal.search(line)
    ]
    assert found == []


def nodes(pattern: str) -> Iterator[ast.AST]:
    for path in ROOT.glob(pattern):
        yield from ast.walk(ast.parse(path.read_text(encoding="utf-8")))


def test_a_class_name_has_one_meaning() -> None:
    patterns = ("settings.py", "cache/**/*.py", "worker/**/*.py", "letta_redis/**/*.py")
    found = Counter(
        node.name for each in patterns for node in nodes(each) if isinstance(node, ast.ClassDef)
    )
    # Both are names of errors that clients see: of the API, and of a request's answer.
    assert [name for name, count in found.items() if count > 1] == ["Refused"]


def test_a_name_of_a_test_is_a_short_claim() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node.name for node in nodes("tests/**/test_*.py") if isinstance(node, kinds)]
    tests = [name for name in found if name.startswith("test_")]
    assert len(tests) > 1000
    assert [name for name in tests if len(name) > 65] == []
