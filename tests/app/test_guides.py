"""
Every Python block of README and the guides runs as it stands, in the order of its page.

A page has a directory and a Valkey of its own. Its blocks with a title
become files there; a page with a `.env` among them has workers that read it.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.guides import README, ROOT, Block, blocks, pages_with_code
from tests.support.scripts import run_script
from tests.support.servers import valkey
from tests.support.wait import eventually_sync
from worker.demo.serving import running

pytestmark = pytest.mark.acceptance

PAGES = pages_with_code()
GUIDES = ("jobs.md", "webhooks.md", "llm-batches.md", "operations.md", "caching.md", "arq.md")
MOST_NOT_RUN = 2
START_S, SCRIPT_S = 60, 240


def name(page: Path) -> str:
    return page.name


@contextmanager
def workers(directory: Path, env: dict[str, str]) -> Iterator[None]:
    """`letta-workers run` in the directory, drained at the end."""
    command = [sys.executable, "-m", "worker", "run", "--count", "1"]
    with (directory / "workers.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=directory, env=env, stdout=log, stderr=log)
    try:
        # A reader starts them first, too; what a guide waits for is a job, not an interpreter.
        eventually_sync(
            lambda: b"supervisor.child_ready" in (directory / "workers.log").read_bytes(),
            deadline_s=START_S,
        )
        yield
    finally:
        process.terminate()
        code = process.wait(60)
    assert code == 0, (directory / "workers.log").read_text(encoding="utf-8")


def execute(block: Block, directory: Path, env: dict[str, str]) -> None:
    done = run_script(block.text, directory, env, timeout_s=SCRIPT_S)
    where = f"the block at line {block.line}"
    assert done.returncode == 0, f"{where}: {done.stderr}"
    assert done.stderr == "", where
    assert done.stdout, f"{where} shows nothing"
    if block.output is not None:
        assert done.stdout == block.output, where


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_of_a_page_runs_as_it_stands(page: Path, tmp_path: Path) -> None:
    home = tmp_path / "reader"
    home.mkdir()
    found = blocks(page)
    with ExitStack() as stack:
        port = stack.enter_context(valkey(tmp_path / "valkey", "--appendonly", "yes"))
        server = f"redis://127.0.0.1:{port}/0"
        env = {**os.environ, "LETTA_REDIS_URL": server, "PYTHONPATH": str(ROOT)}
        if any("submit_" in block.text for block in found if block.is_script):
            provider = stack.enter_context(running("worker.demo.openai_server"))
            env |= {"LETTA_OPENAI_BASE_URL": f"{provider}/v1", "LETTA_OPENAI_API_KEY": "key"}
            env |= {"LETTA_LLM_ALLOW_CIDRS": "127.0.0.0/8"}
        for block in found:
            if block.is_file:
                (home / block.title).write_text(block.text, encoding="utf-8")
        if (home / ".env").exists():
            stack.enter_context(workers(home, env))
        for block in found:
            if block.is_script:
                execute(block, home, env)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_blocks_that_do_not_run_are_few_and_still_python(page: Path) -> None:
    left_out = [block for block in blocks(page) if block.language == "python" and not block.runs]
    assert len(left_out) <= MOST_NOT_RUN
    for block in left_out:
        ast.parse(block.text)


def test_each_guide_shows_code_that_runs() -> None:
    shown = {page.name for page in PAGES if any(block.is_script for block in blocks(page))}
    assert {README.name, *GUIDES} <= shown


def test_readme_has_an_example_of_each_half() -> None:
    scripts = [block.text for block in blocks(README) if block.is_script]
    assert ["open_cache" in text for text in scripts] == [True, False]
    assert ["open_queue" in text for text in scripts] == [False, True]
