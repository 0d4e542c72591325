"""The operators' page without a browser: what it shows, who may see it, and what its forms do."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pytest
import structlog

from tests.support.page import HOSTILE, Form, Seen, fill, take_small_steps
from tests.support.queues import queue_of
from tests.support.web import CLOSED, READ_TOKEN, TOKEN, asking, bearer
from worker import Priority, call
from worker.keys import QueueKeys
from worker.queue.history import FunctionHistory, Span
from worker.queue.series import BUCKETS, Counts, Times
from worker.web.access import Access, Refused
from worker.web.attempts import EACH, Attempts, Limit
from worker.web.page import sessions
from worker.web.page.charts import Timeline, quantile, summed
from worker.web.page.pages import PAGES
from worker.web.page.sessions import SignedSessions

pytestmark = pytest.mark.integration

# What pages about one thing are asked for.
ABOUT = {
    "/job": {"id": "dead-one"},
    "/endpoint": {"name": "https://two.example/hook"},
    "/delivery": {"id": "hook-one"},
    "/search": {"id": "waits"},
    "/history": {"range": "24h"},
    "/group": {"provider": "openai", "endpoint": "/v1/chat/completions", "model": "m"},
}


async def sign_in(
    web: httpx.AsyncClient, token: str = TOKEN, name: str = "", back: str = ""
) -> httpx.Response:
    form = Seen((await web.get("/sign-in", params={"back": back})).text).form("/sign-in")
    return await send(web, form, token=token, name=name)


async def send(web: httpx.AsyncClient, form: Form, **fields: str) -> httpx.Response:
    return await web.post(form.action, data={**form.fields, **fields})


async def page(web: httpx.AsyncClient, path: str, **query: str) -> Seen:
    reply = await web.get(path, params=query or None)
    assert reply.status_code == 200, reply.text
    return Seen(reply.text)


# -- what it shows ------------------------------------------------------------------


async def test_every_page_of_an_empty_queue_says_what_to_do(client: Any, prefix: str) -> None:
    async with asking(queue_of(client, prefix)) as web:
        for each in PAGES:
            if each.path in ("/job", "/delivery", "/batch"):
                assert (await web.get(each.path, params={"id": "none"})).status_code == 404
                continue
            reply = await web.get(each.path, params=ABOUT.get(each.path))
            assert reply.status_code == 200, each.path
            assert reply.text.count("<h1>") == 1, each.path
            told = re.search(r"<pre|>No |Every webhook|Nothing|Nobody", reply.text)
            assert told, each.path


async def test_everything_is_escaped_and_every_form_has_its_proof(client: Any, prefix: str) -> None:
    queue = await fill(client, prefix)
    async with asking(queue, access=CLOSED, show_arguments=True) as web:
        await sign_in(web, name=HOSTILE)
        asked = [(each.path, ABOUT.get(each.path, {})) for each in PAGES if each.path != "/batch"]
        asked += [("/job", {"id": "waits"}), ("/jobs", {"function": "<b>'\""})]
        for path, query in asked:
            reply = await web.get(path, params=query or None)
            assert reply.status_code == 200, path
            text = reply.text
            assert all(char.isprintable() or char == "\n" for char in text), path
            assert len(text) < 200_000, path
            seen = Seen(text)
            assert not seen.tags & {"img", "iframe", "style", "b"}, path
            assert "alert(" not in re.sub(r"&#39;|&lt;", "", text) or "&lt;script&gt;" in text
            assert text.count("<script") == 1, path
            assert not {name for name in seen.attributes if name.startswith("on")}, path
            assert "style" not in seen.attributes, path
            for form in seen.forms:
                assert form.method == "get" or len(form.fields["form_token"]) == 64, path


async def test_all_replies_forbid_foreign_content_and_frames(client: Any, prefix: str) -> None:
    async with asking(queue_of(client, prefix), access=CLOSED) as web:
        paths = ("/", "/sign-in", "/static/page.css", "/static/page.js", "/static/icon.svg")
        for path in paths:
            reply = await web.get(path)
            policy = reply.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert reply.headers["referrer-policy"] == "no-referrer"
        again = await web.get(path, headers={"if-none-match": reply.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


async def test_links_lead_through_all_jobs_and_dead_letters(client: Any, prefix: str) -> None:
    queue, keys = queue_of(client, prefix), QueueKeys(prefix)
    for n in range(120):
        await queue.enqueue("quick", job_id=f"job-{n}", priority=Priority.LOW)
        await client.zadd(keys.dead, {f"dead-{n}": n})
        await client.hset(keys.dead_job(f"dead-{n}"), mapping={"name": "f", "body": "x"})
    async with asking(queue) as web:
        for path, link, prefix_ in (
            ("/jobs?priority=low&state=&function=quick", "Next page", "job-"),
            ("/dead", "Older", "dead-"),
        ):
            found: list[str] = []
            shown = await page(web, path)
            while True:
                found += [text for text in shown.links if text.startswith(prefix_)]
                if link not in shown.links:
                    break
                shown = await page(web, shown.links[link])
            assert len(found) == len(set(found)) == 120, path
        back = await page(web, "/dead", offset="50")
        assert back.links["Newer"] == "/dead"


async def test_search_finds_jobs_webhooks_and_says_where_not(client: Any, prefix: str) -> None:
    async with asking(await fill(client, prefix)) as web:
        for id_, path in (("waits", "/job"), ("dead-one", "/job"), ("hook-one", "/delivery")):
            assert f"{path}?id={id_}" in (await page(web, "/search", id=id_)).links.values()
        assert "No job" in (await web.get("/search", params={"id": "odd <id>/.."})).text
        assert (await web.get("/jobs", params={"state": "no-state"})).status_code == 400
        assert (await web.get("/jobs", params={"cursor": "x"})).status_code == 400


async def test_arguments_are_shown_only_where_the_setting_says_so(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("quick", "an-argument", job_id="waits")
    await client.zadd(QueueKeys(prefix).queue(Priority.LOW), {"odd": 1})
    await client.set(QueueKeys(prefix).job("odd"), b"not a body")
    for show in (False, True):
        async with asking(queue, show_arguments=show) as web:
            text = (await web.get("/job", params={"id": "waits"})).text
            odd = (await web.get("/job", params={"id": "odd"})).text
        assert ("an-argument" in text) is show
        assert ("cannot be read" in odd) is show
        assert ("LETTA_WEB_SHOW_ARGUMENTS" in text) is not show


# -- who may see it -----------------------------------------------------------------


async def test_without_a_session_every_page_leads_to_sign_in(client: Any, prefix: str) -> None:
    queue = await fill(client, prefix)
    async with asking(queue, access=CLOSED) as web:
        for each in PAGES:
            reply = await web.get(each.path, params=ABOUT.get(each.path))
            assert reply.status_code == 303, each.path
            assert reply.headers["location"].startswith("/sign-in"), each.path
        acted = await web.post("/act/dead/delete", data={"id": "dead-one"})
        assert acted.headers["location"] == "/sign-in"
        wrong = await web.get("/", headers=bearer("wrong"))
        assert wrong.status_code == 401
    assert await queue.dead.get("dead-one") is not None


async def test_signing_in_gives_a_cookie_that_is_not_the_token(client: Any, prefix: str) -> None:
    async with asking(queue_of(client, prefix), access=CLOSED) as web:
        wrong = await sign_in(web, "not-the-token")
        assert (wrong.status_code, "letta_session" in web.cookies) == (403, False)
        right = await sign_in(web, name="Ada", back="/jobs?state=dead")
        assert right.headers["location"] == "/jobs?state=dead"
        given = right.headers["set-cookie"]
        assert "HttpOnly" in given
        assert "SameSite=strict" in given
        assert "Secure" not in given
        assert TOKEN not in given
        assert "Ada" in (await web.get("/")).text
        out = (await page(web, "/")).form("/sign-out")
        assert (await send(web, out, form_token="0" * 64)).status_code == 403
        assert (await web.get("/")).status_code == 200
        await send(web, out)
        assert (await web.get("/")).status_code == 303
        web.headers["x-forwarded-proto"] = "https"
        secure = (await web.get("/sign-in")).headers["set-cookie"]
        assert secure.startswith("__Host-letta_form=")
        assert "Secure" in secure


async def test_wrong_tokens_are_limited_and_told_without_the_token(
    client: Any, prefix: str
) -> None:
    async with asking(queue_of(client, prefix), access=CLOSED) as web:
        with structlog.testing.capture_logs() as logs:
            shown = Seen((await web.get("/sign-in")).text).form("/sign-in")
            stale = await send(web, shown, token="guess-0", form_token="0" * 32)
            wrong = [await sign_in(web, f"guess-{n}") for n in range(EACH.burst)]
            over = [await sign_in(web, token) for token in ("guess-11", TOKEN)]
            # A session of before goes on, and so do tokens of a proxy.
            assert (await web.get("/", headers=bearer())).status_code == 200
    assert [each.status_code for each in (stale, *wrong)] == [403] * 11
    assert [each.status_code for each in over] == [429, 429]
    assert 0 < int(over[0].headers["retry-after"]) <= EACH.every_s
    assert "Too many wrong tokens" in over[0].text
    assert "letta_session" not in web.cookies
    told = [line for line in logs if line["event"].startswith("web.sign_in")]
    assert [line["event"] for line in told] == [
        *["web.sign_in_failed"] * EACH.burst,
        "web.sign_ins_refused",
    ]
    assert all(line["address"] == "127.0.0.1" for line in told)
    assert "guess" not in str(logs)
    assert TOKEN not in str(logs)


def test_wrong_tokens_are_forgotten_one_after_the_other() -> None:
    attempts = Attempts(Limit(2, 10.0), Limit(5, 1.0))
    for _ in range(2):
        assert attempts.wait_s("192.0.2.1", 100.0) == 0
        attempts.add("192.0.2.1", 100.0)
    assert attempts.wait_s("192.0.2.1", 100.0) == 10
    assert attempts.wait_s("::ffff:192.0.2.1", 100.0) == 10
    assert attempts.wait_s("192.0.2.2", 100.0) == 0
    assert attempts.wait_s("192.0.2.1", 110.0) == 0
    attempts.add("192.0.2.1", 110.0)
    assert attempts.wait_s("192.0.2.1", 112.5) == 7.5
    # In all: from ever new addresses; of IPv6 one network is one address.
    for n in range(5):
        assert attempts.wait_s("2001:db8::1", 200.0) == 0
        attempts.add(f"198.51.100.{n}", 200.0)
    assert attempts.wait_s("2001:db8::1", 200.0) == 1
    assert attempts.addresses == 5
    for n in range(2):
        attempts.add(f"2001:db8::{n}", 300.0)
    assert attempts.addresses == 1
    assert attempts.wait_s("2001:db8::ffff", 300.0) == 10
    assert attempts.wait_s("2001:db8:0:1::", 300.0) == 0
    assert (attempts.refuse(300.0), attempts.refuse(301.0), attempts.refuse(360.0)) == (1, 0, 2)


async def test_wrong_bearer_tokens_are_limited_everywhere(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for path in ("/api/overview", "/api/openapi.json", "/metrics", "/", "/api/llm/flush"):
        async with asking(queue, access=CLOSED) as web:
            ask = partial(web.request, "POST" if path.endswith("flush") else "GET", path)
            with structlog.testing.capture_logs() as logs:
                # Without a token nothing was guessed.
                none = [await ask() for _ in range(EACH.burst)]
                wrong = [await ask(headers=bearer(f"guess-{n}")) for n in range(EACH.burst)]
                over = [await ask(headers=bearer(token)) for token in ("guess-10", TOKEN)]
                signed_in = await sign_in(web)
        assert {each.status_code for each in none} <= {303, 401}, path
        assert {each.status_code for each in wrong} == {401}, path
        assert {each.status_code for each in over} == {429}, path
        assert 0 < int(over[1].headers["retry-after"]) <= EACH.every_s
        assert signed_in.status_code == 303
        told = [line["event"] for line in logs]
        assert told == ["web.sign_in_failed"] * EACH.burst + ["web.sign_ins_refused"]
        assert "guess" not in str(logs)
        assert TOKEN not in str(logs)


async def test_a_probe_tells_nothing_to_one_who_guesses(client: Any, prefix: str) -> None:
    await client.set(QueueKeys(prefix).queue(), "of another type")
    async with asking(queue_of(client, prefix), access=CLOSED) as web:
        told = [
            (await web.get("/readyz", headers=bearer(t))).text for t in ["guess"] * 10 + [TOKEN]
        ]
        assert all("ask with a token" in each for each in told)
        assert (await web.get("/api/overview", headers=bearer())).status_code == 429


def test_strangers_do_not_keep_out_who_has_the_token() -> None:
    attempts = Attempts(Limit(2, 10.0), Limit(5, 1.0))
    for n in range(300):
        attempts.accept(f"198.51.{n // 256}.{n % 256}")
    for n in range(10):
        attempts.add(f"192.0.2.{n}", 100.0)
    assert attempts.wait_s("203.0.113.1", 100.0) > 0
    assert attempts.wait_s("198.51.1.43", 100.0) == 0
    # The latest 200 are remembered, and their own wrong tokens count.
    assert attempts.wait_s("198.51.0.99", 100.0) > 0
    for _ in range(2):
        attempts.add("198.51.1.43", 100.0)
    assert attempts.wait_s("198.51.1.43", 100.0) == 10


async def test_sign_in_leads_to_our_own_pages_only(client: Any, prefix: str) -> None:
    async with asking(queue_of(client, prefix), access=CLOSED) as web:
        for back in ("//evil.example", "https://evil.example", "/\\evil.example", "/a\nb", "/a//b"):
            assert (await sign_in(web, back=back)).headers["location"] == "/", back
        form = Seen((await web.get("/sign-in")).text).form("/sign-in")
        web.cookies.clear()
        assert (await send(web, form, token=TOKEN)).status_code == 403


def test_a_session_ends_and_is_bound_to_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = SignedSessions(Access("o" * 16, "r" * 16))
    operator, reader = mine.start("o" * 16, "Ada"), mine.start("r" * 16, "")
    assert operator is not None
    assert reader is not None
    found = mine.find({}, operator)
    assert found is not None
    assert (found.visitor.actor, found.visitor.may_act) == ("Ada", True)
    read = mine.find({}, reader)
    assert read is not None
    assert not read.visitor.may_act
    forged = [
        operator[:-1] + ("0" if operator[-1] != "0" else "1"),
        reader.replace("reader", "operator"),
        *("", "....", "operator.1.2.3.4", "x" * 5000, "operator.x.y.zz.\udcff", operator + "."),
    ]
    for cookie in forged:
        assert mine.find({}, cookie) is None, cookie
    assert SignedSessions(Access("p" * 16, "r" * 16)).find({}, operator) is None
    assert SignedSessions(Access(None, "r" * 16)).find({}, operator) is None
    now = time.time()
    monkeypatch.setattr("worker.web.page.sessions.time.time", lambda: now + sessions.SESSION_S + 1)
    assert mine.find({}, operator) is None


def test_forms_of_one_session_are_refused_in_another() -> None:
    mine = SignedSessions(CLOSED)
    found = [mine.find({}, mine.start(TOKEN, "") or "") for _ in range(2)]
    one, other = found
    assert one is not None
    assert other is not None
    one.require_form(one.form_token)
    for wrong in (other.form_token, "", "\udcff", one.form_token[:-1]):
        with pytest.raises(Refused, match="too old"):
            one.require_form(wrong)


def test_forms_of_one_user_of_a_proxy_are_refused_from_another() -> None:
    mine = SignedSessions(Access(TOKEN, READ_TOKEN, "x-user"))
    users = [
        mine.find({**bearer(token), "x-user": name}, "")
        for token, name in ((TOKEN, "ada"), (TOKEN, "bob"), (READ_TOKEN, "ada"), (TOKEN, ""))
    ]
    again = mine.find({**bearer(TOKEN), "x-user": "ada"}, "")
    assert again is not None
    for user in users:
        assert user is not None
        for other in users:
            assert other is not None
            if other is not user:
                with pytest.raises(Refused):
                    user.require_form(other.form_token)
    assert users[0] is not None
    again.require_form(users[0].form_token)


# -- what its forms do --------------------------------------------------------------


async def test_an_action_is_done_and_said_and_written_down(client: Any, prefix: str) -> None:
    queue = await fill(client, prefix)
    async with asking(queue, access=CLOSED) as web:
        await sign_in(web, name="Ada")
        form = (await page(web, "/job", id="dead-one")).form("/act/dead/retry")
        done = await send(web, form)
        assert (done.status_code, done.headers["location"]) == (303, "/job?id=dead-one")
        assert "Retry: enqueued again" in (await web.get("/job?id=dead-one")).text
        assert "Retry: enqueued again" not in (await web.get("/job?id=dead-one")).text
        pauses = await page(web, "/pauses")
        await send(web, pauses.form("/act/functions/pause"), function="odd <name>")
        await send(web, (await page(web, "/pauses")).form("/act/priorities/resume"))
        names = {pause.function or pause.priority for pause in await queue.jobs.pauses.list()}
        assert names == {"paused_function", "odd <name>"}
        shown = await page(web, "/schedules")
        await send(web, shown.form("/act/schedules/on"))
        await send(web, shown.form("/act/schedules/off"))
        states = await queue.jobs.schedule_states()
        assert [(each.schedule.id, each.is_on) for each in states] == [
            ("nightly", False),
            ("often", True),
        ]
        again = await send(web, form)
        assert again.status_code == 404
        trail = (await queue.jobs.audit.page(limit=6)).entries
    assert [(each.actor, each.action) for each in trail] == [
        ("Ada", "dead/retry"),
        ("Ada", "schedules/off"),
        ("Ada", "schedules/on"),
        ("Ada", "priorities/resume"),
        ("Ada", "functions/pause"),
        ("Ada", "dead/retry"),
    ]


async def test_a_form_of_another_site_does_nothing(client: Any, prefix: str) -> None:
    for access in (CLOSED, Access()):
        queue = await fill(client, f"{prefix}{access.asks_for_token}:")
        async with asking(queue, access=access) as web:
            if access.asks_for_token:
                await sign_in(web)
            form = (await page(web, "/job", id="dead-one")).form("/act/dead/delete")
            assert (await send(web, form, form_token="0" * 64)).status_code == 403
            assert (await web.post(form.action, data={"id": "dead-one"})).status_code == 403
            foreign = await web.post(
                form.action, data=form.fields, headers={"sec-fetch-site": "cross-site"}
            )
            assert foreign.status_code == 403
            typed = await web.post(form.action, content=b"{}")
            assert typed.status_code == 415
            long = await send(web, form, id="x" * 70_000)
            assert long.status_code == 413
            header = {"content-type": "application/x-www-form-urlencoded"}
            for body in (b"\xff", b"id", b"id=1&id=2"):
                odd = await web.post(form.action, content=body, headers=header)
                assert odd.status_code == 400, body
            assert await queue.dead.get("dead-one") is not None
            assert (await send(web, form)).status_code == 303
            assert await queue.dead.get("dead-one") is None


async def test_the_read_token_gives_no_buttons_and_no_action(client: Any, prefix: str) -> None:
    queue = await fill(client, prefix)
    async with asking(queue, access=CLOSED) as web:
        await sign_in(web, READ_TOKEN)
        for each in PAGES:
            if each.path == "/batch":
                continue
            seen = await page(web, each.path, **ABOUT.get(each.path, {}))
            posts = [form.action for form in seen.forms if form.method == "post"]
            assert posts == ["/sign-out"], each.path
        proof = seen.form("/sign-out").fields["form_token"]
        refused = await web.post("/act/dead/delete", data={"id": "dead-one", "form_token": proof})
        assert refused.status_code == 403
        assert "may only read" in refused.text
    assert await queue.dead.get("dead-one") is not None


async def test_a_proxy_signs_in_by_the_token_that_it_adds(client: Any, prefix: str) -> None:
    queue = await fill(client, prefix)
    access = Access(TOKEN, None, "x-forwarded-user")
    async with asking(queue, access=access) as web:
        assert (await web.get("/", headers={"x-forwarded-user": "ada"})).status_code == 303
        web.headers.update({**bearer(), "x-forwarded-user": "ada"})
        shown = await page(web, "/job", id="dead-one")
        assert "/sign-out" not in [form.action for form in shown.forms]
        await send(web, shown.form("/act/dead/delete"))
    assert (await queue.jobs.audit.page(limit=1)).entries[0].actor == "ada"


async def test_without_tokens_only_a_loopback_name_is_answered(client: Any, prefix: str) -> None:
    async with asking(queue_of(client, prefix)) as web:
        assert (await web.get("/sign-in")).headers["location"] == "/"
        assert (await web.get("/", headers={"host": "localhost:1"})).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example"):
            refused = await web.get("/", headers={"host": host})
            assert refused.status_code == 403, host
            assert "form_token" not in refused.text


# -- charts -------------------------------------------------------------------------


def counts(completed: int, dead: int, bucket: int) -> Counts:
    times = Times(tuple(completed if at == bucket else 0 for at in range(BUCKETS)), 1.0)
    return Counts(completed, 0, dead, 0, 0, 0, 0, times, times)


def test_a_timeline_sums_up_functions_by_steps() -> None:
    start = 1_700_000_000 // 300 * 300
    moment = datetime.fromtimestamp(start + 60, UTC)
    late = datetime.fromtimestamp(start + 600, UTC)
    before = datetime.fromtimestamp(start - 1, UTC)
    spans = [
        Span(before, counts(9, 9, 0)),
        Span(moment, counts(3, 1, 0)),
        Span(late, counts(1, 0, BUCKETS - 1)),
    ]
    timeline = Timeline(start, start + 899, 300)
    assert timeline.charts() == []
    for name in ("a", "b"):
        timeline.add([FunctionHistory(name, Priority.LOW, counts(0, 0, 0), counts(0, 0, 0), spans)])
    rate, failures, wait, _run = timeline.charts()
    assert [cells for _, cells in rate.rows] == [["6"], ["0"], ["2"]]
    assert [cells for _, cells in failures.rows] == [["0", "2", "0"], ["0"] * 3, ["0"] * 3]
    assert [cells for _, cells in wait.rows] == [["1 ms"] * 2, [""] * 2, ["over 1 h"] * 2]
    assert wait.lines[0].path == "M0.0 120.0H200.0M400.0 0.0H600.0"
    assert all(0 <= bar.y <= 120 and bar.y + bar.height <= 120.1 for bar in rate.bars)


def test_quantiles_name_the_bucket_that_holds_them() -> None:
    assert quantile(summed([]), 0.95) == ""
    times = [counts(19, 0, 0).run, counts(1, 0, 9).run]
    assert [quantile(summed(times), share) for share in (0.5, 0.95, 0.96)] == [
        "1 ms",
        "1 ms",
        "1 s",
    ]


# -- all that match -----------------------------------------------------------------


async def test_all_that_match_are_counted_then_changed_in_steps(
    client: Any, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue_many([call("mine", job_id=f"m{n}", delay_s=60) for n in range(450)])
    await queue.enqueue("other", job_id="o", delay_s=60)
    take_small_steps(monkeypatch)
    async with asking(queue, access=CLOSED) as web:
        await sign_in(web, name="Ada")
        links = (await page(web, "/jobs", function="mine")).links
        counted = await web.get(links["run all deferred ones now"])
        assert "200 of 200 jobs match so far" in counted.text
        while (link := Seen(counted.text).links.get("Count on")) is not None:
            counted = await web.get(link)
        assert "450 of 451 jobs match." in counted.text
        assert (await queue.stats())["default"]["deferred"] == 451
        form = Seen(counted.text).forms[-1]
        assert form.fields["expected"] == "450"
        refused = await send(web, form, form_token="0" * 64)
        assert refused.status_code == 403
        for looked in (200, 400, 451):
            done = await send(web, form)
            assert f"{looked} were checked" in done.text
            assert "<progress" in done.text
            form = Seen(done.text).forms[-1]
    assert "450 of 450 jobs that match are made due" in done.text
    assert form.action == "/sign-out"
    counts = (await queue.stats())["default"]
    assert (counts["deferred"], counts["queued"]) == (1, 450)
    trail = (await queue.jobs.audit.page(limit=9)).entries
    assert [(each.actor, each.action) for each in trail] == [("Ada", "jobs/bulk")] * 3
    assert "function=mine" in trail[0].subject


async def test_a_filter_that_makes_no_sense_changes_nothing(client: Any, prefix: str) -> None:
    queue = await fill(client, prefix)
    async with asking(queue) as web:
        proof = (await page(web, "/pauses")).form("/act/functions/pause").fields["form_token"]
        for wrong in (
            {"action": "delete", "state": "queued"},
            {"action": "cancel", "error": "x"},
            {"action": "delete", "min_tries": "many"},
            {"action": "drop"},
        ):
            assert (await web.get("/change", params=wrong)).status_code == 400, wrong
            refused = await web.post("/change", data={**wrong, "form_token": proof})
            assert refused.status_code == 400, wrong
        kept = await web.post(
            "/change", data={"action": "delete", "error": "never so", "form_token": proof}
        )
        assert "0 of 0 dead letters that match are deleted" in kept.text
        assert await queue.dead.get("dead-one") is not None
        gone = await web.post("/change", data={"action": "delete", "form_token": proof})
        assert "1 of 1 dead letters that match are deleted" in gone.text
    assert await queue.dead.get("dead-one") is None
