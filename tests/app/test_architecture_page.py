"""docs/architecture.md has one row per folder and module, and its answers name existing files."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import PurePosixPath

import pytest

from tests.support.guides import README, ROOT

pytestmark = pytest.mark.unit

PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
WHERE = PAGE.partition("## Where is ...")[2].partition("\n## ")[0]
ROWS = Counter(re.findall(r"^\| `([^`]+)` \|", PAGE, re.MULTILINE))
QUESTIONS = (
    "a retry delay of a job",
    "the SSRF check",
    "a killed worker's job",
    "all keys of a job in one table",
    "why a stale fill is refused",
    "why a batch is submitted once",
    "where a setting takes effect",
)


def tracked() -> list[PurePosixPath]:
    """Return the files of the checkout that git does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    names = [name for name in done.stdout.decode().split("\0") if name]
    return [PurePosixPath(name) for name in names if (ROOT / name).exists()]


def wanted() -> set[str]:
    """Return every folder, and every module that its folder's row does not cover."""
    files = tracked()
    folders = {f"{parent}/" for file in files for parent in file.parents if str(parent) != "."}
    modules = {
        str(file)
        for file in files
        if file.suffix == ".py" and file.name != "__init__.py" and file.parts[0] != "tests"
    }
    return folders | modules


def test_every_folder_and_module_has_a_row() -> None:
    assert sorted(wanted() - set(ROWS)) == []


def test_every_row_names_something_that_exists() -> None:
    assert sorted(set(ROWS) - wanted()) == []


def test_no_path_has_two_rows() -> None:
    assert [path for path, count in ROWS.items() if count > 1] == []


def test_each_question_is_answered_in_three_opens() -> None:
    """The page is the first file to open; the cells of a row name the second and the third."""
    assert "(docs/architecture.md)" in README.read_text(encoding="utf-8")
    for question in QUESTIONS:
        (row,) = re.findall(rf"^\| {re.escape(question)} \|(.*)\|$", WHERE, re.MULTILINE)
        second, third = row.split("|")
        assert "`" in second, question
        for path in re.findall(r"`([\w.-]+/[\w./-]+)`", second + third):
            assert (ROOT / path).is_file(), f"{question}: {path}"


def test_names_in_the_answers_are_in_their_files() -> None:
    named = re.findall(r"`([\w/]+\.py)` \(([^)]*)\)", WHERE)
    assert named
    for path, words in named:
        text = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"`([\w.]+)`", words):
            assert re.search(rf"(class|def) {name.rpartition('.')[2]}\b", text), f"{path}: {name}"
