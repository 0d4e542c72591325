"""The operators' page in headless Chromium: axe-core's rules, the policy, keyboard, no scripts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, expect

from cache.connection.pool import PoolOptions, open_pool
from tests.support.browser import browsing, violations
from tests.support.page import fill, take_small_steps
from tests.support.queues import queue_of
from tests.support.web import CLOSED, OPEN, TOKEN, serving
from worker import JobQueue, call
from worker.web.access import Access
from worker.web.page.pages import PAGES
from worker.web.site import Site

# One browser for all: a start of it costs more than a test.
pytestmark = [pytest.mark.acceptance, pytest.mark.asyncio(loop_scope="module")]

# What pages about one thing are asked for.
ABOUT = {
    "/job": "?id=dead-one",
    "/endpoint": "?name=https://two.example/hook",
    "/delivery": "?id=hook-one",
    "/search": "?id=waits",
    "/group": "?provider=openai&endpoint=/v1/chat/completions&model=m",
}
# A busy machine may take its time.
DEADLINE_MS = 60_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with browsing() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def client(valkey_url: str, prefix: str) -> AsyncIterator[Any]:
    async with open_pool(valkey_url, PoolOptions(), name="test", tag=prefix[:-1]) as found:
        yield found


@asynccontextmanager
async def looking(
    browser: Browser, queue: JobQueue, access: Access = OPEN, **options: Any
) -> AsyncIterator[tuple[Page, list[str]]]:
    """A page of the browser, and what went wrong in it: errors, the policy, dialogs."""
    wrong: list[str] = []
    async with (
        serving(Site(queue, access, show_arguments=True)) as url,
        await browser.new_context(base_url=url, **options) as context,
    ):
        context.set_default_timeout(DEADLINE_MS)
        expect.set_options(timeout=DEADLINE_MS)
        page = await context.new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("dialog", lambda dialog: wrong.append(dialog.message))
        yield page, wrong


async def test_axe_finds_nothing_on_any_page(browser: Browser, client: Any, prefix: str) -> None:
    async with looking(browser, await fill(client, prefix)) as (page, wrong):
        for each in PAGES:
            if each.path == "/batch":
                continue
            reply = await page.goto(each.path + ABOUT.get(each.path, ""))
            assert reply is not None
            assert reply.status == 200, each.path
            assert await violations(page) == [], each.path
        assert wrong == []


async def test_axe_finds_nothing_in_the_dark_on_a_narrow_screen(
    browser: Browser, client: Any, prefix: str
) -> None:
    narrow: dict[str, Any] = {"viewport": {"width": 320, "height": 600}, "color_scheme": "dark"}
    async with looking(browser, await fill(client, prefix), **narrow) as (page, wrong):
        for path in ("/", "/job?id=dead-one", "/dead"):
            await page.goto(path)
            assert await violations(page) == [], path
            width = await page.evaluate("document.documentElement.scrollWidth")
            assert width <= 320, path
        assert wrong == []


async def test_axe_finds_nothing_where_there_is_nothing(
    browser: Browser, client: Any, prefix: str
) -> None:
    async with looking(browser, queue_of(client, prefix), CLOSED) as (page, wrong):
        await page.goto("/jobs")
        assert await violations(page) == []
        await sign_in(page)
        await page.goto("/jobs")
        assert await violations(page) == []
        assert wrong == []


async def test_without_scripts_one_signs_in_acts_and_sees_it(
    browser: Browser, client: Any, prefix: str
) -> None:
    queue = await fill(client, prefix)
    async with looking(browser, queue, CLOSED, java_script_enabled=False) as (page, wrong):
        await page.goto("/dead")
        await sign_in(page, "Ada")
        await page.locator("summary", has_text="Delete dead-one").click()
        await page.get_by_role("button", name="Delete dead-one").click()
        await expect(page.get_by_role("status")).to_have_text("Delete: deleted")
        await page.get_by_role("link", name="Audit trail").click()
        row = page.get_by_role("row").nth(1)
        await expect(row).to_contain_text("Ada")
        await expect(row).to_contain_text("dead/delete")
        assert wrong == []
    assert await queue.dead.count() == 0


async def test_scripts_go_on_with_a_change_until_all_were_looked_at(
    browser: Browser, client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue_many([call("f", job_id=f"j{n}", delay_s=3600) for n in range(450)])
    take_small_steps(monkeypatch)
    async with looking(browser, queue) as (page, wrong):
        await page.goto("/jobs")
        await page.get_by_role("link", name="run all deferred ones now").click()
        await page.get_by_role("link", name="Count on").click()
        await page.get_by_role("link", name="Count on").click()
        await expect(page.get_by_role("status")).to_have_text("450 of 450 jobs match.")
        await page.get_by_role("button", name="Run now all that match").click()
        told = page.get_by_role("status")
        await expect(told).to_contain_text("450 of 450 jobs that match are made due")
        assert await violations(page) == []
        assert wrong == []


async def test_the_keyboard_reaches_everything_and_shows_where(
    browser: Browser, client: Any, prefix: str
) -> None:
    async with looking(browser, await fill(client, prefix)) as (page, _wrong):
        await page.goto("/pauses")
        await page.keyboard.press("Tab")
        await expect(page.get_by_role("link", name="Skip to content")).to_be_in_viewport(ratio=1)
        await page.keyboard.press("Enter")
        await page.keyboard.press("Tab")
        refresh = page.get_by_role("link", name="Refresh")
        await expect(refresh).to_be_focused()
        assert await refresh.evaluate("each => getComputedStyle(each).outlineWidth") == "3px"
        await page.get_by_role("button", name="Resume paused_function").press("Enter")
        await expect(page.get_by_role("status")).to_have_text("Resume: resumed")


async def test_scripts_show_local_times_and_load_the_page_again(
    browser: Browser, client: Any, prefix: str
) -> None:
    queue = await fill(client, prefix)
    async with looking(browser, queue, timezone_id="Asia/Kolkata") as (page, wrong):
        await page.clock.install()
        await page.goto("/pauses")
        time = page.locator("time").first
        await expect(time).to_contain_text("ago")
        is_local = (
            "each => each.textContent.startsWith(new Date(each.dateTime).toLocaleTimeString())"
        )
        assert await time.evaluate(is_local)
        await queue.jobs.pauses.pause(function="paused_meanwhile")
        await page.clock.run_for(10_000)
        await expect(page.get_by_role("cell", name="paused_meanwhile")).to_be_attached()
        await page.get_by_label("every 10 s").uncheck()
        await page.reload()
        await expect(page.get_by_label("every 10 s")).not_to_be_checked()
        assert wrong == []


async def sign_in(page: Page, name: str = "") -> None:
    await page.get_by_label("Token").fill(TOKEN)
    await page.get_by_label("Your name").fill(name)
    await page.get_by_role("button", name="Sign in").click()
    await expect(page.get_by_role("button", name="Sign out")).to_be_visible()
