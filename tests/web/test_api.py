"""The JSON API: what it shows, what its actions do, who may ask, and what the trail says."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from arq.worker import func
from starlette.datastructures import Headers

from tests.support.engine import burst, running
from tests.support.queues import queue_of, stores_of
from tests.support.wait import eventually
from tests.support.web import CLOSED, READ_TOKEN, TOKEN, asking, bearer
from worker import Priority, call
from worker.errors import InvalidArgument
from worker.keys import EngineKeys
from worker.web.access import Access, Role, Visitor
from worker.web.api.actions import ACTIONS
from worker.web.api.performing import Action, perform
from worker.web.api.queries import Nothing
from worker.web.api.views import Done
from worker.web.site import Site

pytestmark = pytest.mark.integration

SECRET = "an-argument-that-nobody-sees"


async def quick(ctx: dict[str, Any], *args: Any) -> None: ...


async def fails(ctx: dict[str, Any], *args: Any) -> None:
    raise ValueError("as asked")


FUNCTIONS = [func(each, name=each.__name__, max_tries=1, keep_result=60) for each in (quick, fails)]


async def trail(web: httpx.AsyncClient) -> list[tuple[str, str, str, str]]:
    rows = (await web.get("/api/audit", headers=bearer())).json()["entries"]
    return [(row["actor"], row["action"], row["subject"], row["outcome"]) for row in rows]


async def test_pages_of_jobs_follow_their_cursor(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for n in range(5):
        await queue.enqueue("quick", job_id=f"q-{n}", priority=Priority.LOW)
    await queue.enqueue("fails", job_id="later", delay_s=3600)
    async with asking(queue) as web:
        query = {"priority": "low", "limit": "2"}
        seen: list[str] = []
        cursor = ""
        while True:
            page = (await web.get("/api/jobs", params={**query, "cursor": cursor})).json()
            seen += [row["id"] for row in page["jobs"]]
            cursor = page["cursor"]
            if not cursor:
                break
        later = (await web.get("/api/jobs", params={"state": "deferred"})).json()
    assert sorted(seen) == [f"q-{n}" for n in range(5)]
    assert [(row["id"], row["function"]) for row in later["jobs"]] == [("later", "fails")]


async def test_one_job_is_found_in_every_state(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("quick", job_id="ended")
    await queue.enqueue("fails", job_id="died")
    await burst(client, prefix, FUNCTIONS)
    await queue.enqueue("quick", job_id="waits")
    async with asking(queue) as web:
        found = {
            id_: (await web.get("/api/job", params={"id": id_})).json()
            for id_ in ("ended", "died", "waits")
        }
        missing = await web.get("/api/job", params={"id": "unknown"})
    assert {id_: row["state"] for id_, row in found.items()} == {
        "ended": "complete",
        "died": "dead",
        "waits": "queued",
    }
    assert "as asked" in found["died"]["error"]
    assert missing.status_code == 404
    assert missing.json()["error"]["kind"] == "NotFound"


async def test_arguments_are_shown_only_where_the_setting_says(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("fails", SECRET, key=SECRET, job_id="died")
    await burst(client, prefix, FUNCTIONS)
    await queue.enqueue("quick", SECRET, job_id="waits")
    paths = ["/api/job?id=died", "/api/job?id=waits", "/api/jobs", "/api/dead"]
    async with asking(queue) as web:
        for path in paths:
            assert SECRET not in (await web.get(path)).text
    async with asking(queue, show_arguments=True) as web:
        died, waits = [(await web.get(path)).json() for path in paths[:2]]
    assert (died["args"], died["kwargs"]) == ([repr(SECRET)], {"key": repr(SECRET)})
    assert waits["args"] == [repr(SECRET)]


async def test_actions_change_jobs_and_leave_a_trail(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("fails", job_id="one")
    await queue.enqueue("fails", job_id="two")
    await burst(client, prefix, FUNCTIONS)
    await queue.enqueue("quick", job_id="three", delay_s=3600)
    access = Access(TOKEN, READ_TOKEN, "X-Forwarded-User")
    async with asking(queue, access=access) as web, running(client, prefix, FUNCTIONS[:1]):
        web.headers.update({**bearer(), "x-forwarded-user": "kim"})
        for name, id_ in (
            ("dead/retry", "one"),
            ("dead/delete", "two"),
            ("jobs/cancel", "three"),
        ):
            done = await web.post(f"/api/{name}", json={"id": id_})
            assert (done.status_code, done.json()["changed"]) == (200, True), done.text
        again = await web.post("/api/dead/delete", json={"id": "two"})
        assert again.status_code == 404

        async def is_canceled() -> bool:
            job = (await web.get("/api/job", params={"id": "three"})).json()
            return bool(job.get("state") == "complete")

        await eventually(is_canceled)
        rows = await trail(web)
    assert [(actor, action, subject) for actor, action, subject, _ in reversed(rows)] == [
        ("kim", "dead/retry", "one"),
        ("kim", "dead/delete", "two"),
        ("kim", "jobs/cancel", "three"),
        ("kim", "dead/delete", "two"),
    ]
    assert rows[0][3] == "failed: no dead letter 'two'"


async def test_an_interrupted_action_is_in_the_trail(client: Any, prefix: str) -> None:
    begun = asyncio.Event()

    async def hang(_queue: Any, _target: Nothing) -> Done:
        begun.set()
        return await asyncio.Future[Done]()

    queue = queue_of(client, prefix)
    action = Action("x/hang", "Hang", "Never end.", Nothing, hang)
    visitor = Visitor(Role.OPERATOR, "kim")
    asking_for_it = perform(Site(queue, CLOSED, False, None), visitor, action, Nothing())
    task = asyncio.create_task(asking_for_it)
    await asyncio.wait_for(begun.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (entry,) = (await queue.jobs.audit.page(limit=2)).entries
    assert (entry.actor, entry.outcome) == ("kim", "interrupted: perhaps done")


def test_a_name_that_a_client_has_added_is_not_believed() -> None:
    access = Access(TOKEN, READ_TOKEN, "X-Forwarded-User")
    once = Headers(raw=[(b"x-forwarded-user", b"kim")])
    twice = Headers(raw=[(b"x-forwarded-user", b"mallory"), (b"x-forwarded-user", b"kim")])
    assert access.visitor(Role.OPERATOR, once).actor == "kim"
    assert access.visitor(Role.OPERATOR, twice).actor == "operator"


async def test_webhooks_schedules_and_batches_can_be_steered(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    url = "https://one.example/hook"
    id_ = await queue.send_webhook(url, {"n": 1}, event_type="test.event", delay_s=3600)
    await queue.schedule("nightly", call("quick"), cron="0 3 * * *")
    async with asking(queue) as web:

        async def act(action: str, **target: str) -> dict[str, Any]:
            done = await web.post(f"/api/{action}", json=target)
            assert done.status_code == 200, done.text
            found: dict[str, Any] = done.json()
            return found

        (waiting,) = (await web.get("/api/deliveries")).json()
        assert (waiting["id"], waiting["url"]) == (id_, url)
        assert (await act("deliveries/retry", id=id_))["changed"]
        assert (await act("endpoints/disable", name=url))["changed"]
        assert not (await act("endpoints/disable", name=url))["changed"]
        shown = (await web.get("/api/endpoints")).json()
        assert [row["name"] for row in shown["disabled"]] == [url]
        assert (await act("endpoints/enable", name=url))["changed"]
        (schedule,) = (await web.get("/api/schedules")).json()
        assert (schedule["id"], schedule["cron"]) == ("nightly", "0 3 * * *")
        await act("schedules/delete", id="nightly")
        assert (await web.get("/api/schedules")).json() == []
        await act("llm/flush")


async def test_functions_and_priorities_are_paused_and_resumed(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    targets = {"functions": {"function": "quick"}, "priorities": {"priority": "low"}}
    async with asking(queue) as web:
        for step, changed in (("pause", [True, False]), ("resume", [True, False])):
            for kind, target in targets.items():
                done = [await web.post(f"/api/{kind}/{step}", json=target) for _ in changed]
                assert [each.json()["changed"] for each in done] == changed
            shown = (await web.get("/api/pauses")).json()
            assert len(shown) == (2 if step == "pause" else 0)
        subjects = [subject for _, _, subject, _ in await trail(web)]
    assert set(subjects) == {"function quick", "priority low"}


async def test_the_read_token_reads_and_changes_nothing(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    await queue.enqueue("quick", job_id="waits", delay_s=3600)
    async with asking(queue, access=CLOSED) as web:
        assert (await web.get("/api/jobs")).status_code == 401
        web.headers.update(bearer(READ_TOKEN))
        assert (await web.get("/api/jobs")).status_code == 200
        for name, action in ACTIONS.items():
            target = dict.fromkeys(action.target.__struct_fields__, "waits")
            refused = await web.post(f"/api/{action.path}", json=target)
            assert refused.status_code == 403, name
        assert await trail(web) == []
    assert (await queue.jobs.describe("waits")).state == "deferred"


async def test_all_jobs_that_filters_mean_are_changed_in_steps(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    for n in range(3):
        await queue.enqueue("quick", n, job_id=f"a-{n}", delay_s=3600)
    await queue.enqueue("quick", job_id="b", delay_s=3600)
    wanted = {"action": "run", "id_prefix": "a-", "min_tries": 0}
    async with asking(queue) as web:

        async def bulk(**more: Any) -> dict[str, Any]:
            done = await web.post("/api/jobs/bulk", json={**wanted, **more})
            found: dict[str, Any] = {**done.json(), "status": done.status_code}
            return found

        tried = await bulk(dry_run=True)
        assert (tried["status"], tried["looked"], tried["matched"]) == (200, 4, 3)
        assert (tried["done"], tried["changed"], tried["cursor"]) == (0, False, "")
        assert await trail(web) == []
        assert (await bulk(arguments={"0": "1"}))["status"] == 403
        done = await bulk()
        assert (done["done"], done["changed"]) == (3, True)
        assert (await bulk(action="retry", state="queued"))["status"] == 400
        rows = await trail(web)
    assert rows[-1][1:] == (
        "jobs/bulk",
        "id_prefix=a- action=run",
        "3 of 3 changed among 4",
    )
    async with asking(queue, show_arguments=True) as web:
        found = await bulk(action="cancel", arguments={"0": "1"}, dry_run=True)
        assert (found["matched"], found["looked"]) == (1, 4)


async def test_jobs_are_enqueued_and_run_by_hand(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    new: dict[str, Any] = {
        "function": "quick",
        "args": [1, {"a": [None]}],
        "kwargs": {"priority": "x"},
    }
    new |= {"job_id": "mine", "priority": "low", "delay_s": 60.5}
    async with asking(queue) as web:
        added = await web.post("/api/jobs", json=new)
        assert added.json() == {"changed": True, "message": "enqueued mine"}
        again = await web.post("/api/jobs", json=new)
        assert again.json()["changed"] is False
        for name, wrong in (("function", "a b"), ("priority", "x"), ("args", {}), ("delay_s", -1)):
            refused = await web.post("/api/jobs", json={**new, name: wrong})
            assert refused.status_code == 400, name
        for changed in (True, False):
            ran = await web.post("/api/jobs/run", json={"id": "mine"})
            assert ran.json()["changed"] is changed
        assert (await web.post("/api/jobs/run", json={"id": "unknown"})).status_code == 404
        actions = [action for _, action, _, _ in await trail(web)]
    assert {"jobs/add", "jobs/run"} == set(actions)
    row = await queue.jobs.describe("mine")
    assert (row.state, row.priority, row.function) == ("queued", "low", "quick")
    made = await queue.jobs.arguments("mine")
    assert (made.args, made.kwargs) == ([1, {"a": [None]}], {"priority": "x"})


async def test_a_foreign_page_reaches_no_server_without_token(client: Any, prefix: str) -> None:
    """A name that resolves to 127.0.0.1 is not ours, and a form cannot send JSON."""
    async with asking(queue_of(client, prefix)) as web:
        for host in ("evil.example", "evil.example:8484", "127.0.0.1.evil.example", ""):
            refused = await web.get("/api/jobs", headers={"host": host})
            assert refused.status_code in (400, 403), host
        for host in ("localhost", "localhost:8484", "127.0.0.1:1", "[::1]:8484", "[::1]"):
            assert (await web.get("/api/jobs", headers={"host": host})).status_code == 200, host
        form = await web.post(
            "/api/llm/flush", content=b"{}", headers={"content-type": "text/plain"}
        )
        assert form.status_code == 415
        too_long = await web.post("/api/llm/flush", json={"a": "x" * 70_000})
        assert too_long.status_code == 413


async def test_the_trail_keeps_a_bounded_number_of_entries(client: Any, prefix: str) -> None:
    audit = queue_of(client, prefix).jobs.audit
    await audit.record("a" * 5000, "b", "c\ud800", "d")
    pages = [await audit.page(limit=1)]
    assert pages[0].cursor == ""
    assert len(pages[0].entries[0].actor) == 1024
    async with client.pipeline(transaction=False) as pipe:
        for _ in range(12_000):
            pipe.xadd(f"{prefix}audit", {"actor": "x"})
        await pipe.execute()
    await audit.record("last", "b", "c", "d")
    assert await client.xlen(f"{prefix}audit") < 10_200
    newest = await audit.page(limit=2)
    older = await audit.page(limit=1, cursor=newest.entries[0].id)
    assert [entry.actor for entry in newest.entries] == ["last", "x"]
    assert older.entries == newest.entries[1:]
    wrong: list[Any] = [0, 1001, True, "5"]
    for limit in wrong:
        with pytest.raises(InvalidArgument, match="limit"):
            await audit.page(limit=limit)


async def test_a_schedule_tells_its_next_and_its_last_run(client: Any, prefix: str) -> None:
    queue = queue_of(client, prefix)
    keys = stores_of(queue).keys
    await queue.schedule("new", call("quick"), cron="0 3 * * *")
    await queue.schedule("often", call("fails", 1, priority=Priority.LOW), every_s=3600)
    tick = 1_700_000_000_000
    job = f"often:{tick}:~"
    await client.hset(f"{keys.queue()}:schedules:runs", "often", job)
    await client.set(keys.job(job), "body")
    async with asking(queue) as web:
        new, often = (await web.get("/api/schedules")).json()
        assert (new["next_at"], new["last_at"], new["last_outcome"]) == (None, None, "")
        assert datetime.fromisoformat(often["next_at"]) > datetime.now(UTC)
        assert datetime.fromisoformat(often["last_at"]).timestamp() * 1000 == tick
        outcomes = [often["last_outcome"]]
        for key in (keys.in_progress(job), None):
            if key is not None:
                await client.set(key, "x")
            else:
                await client.delete(keys.job(job), keys.in_progress(job))
                await client.hset(keys.dead_job(job), "name", "x")
            outcomes.append((await web.get("/api/schedules")).json()[1]["last_outcome"])
        await client.delete(keys.dead_job(job))
        outcomes.append((await web.get("/api/schedules")).json()[1]["last_outcome"])
        assert outcomes == ["waits", "runs", "dead", "ended"]

        ran = await web.post("/api/schedules/run", json={"id": "often"})
        assert ran.json()["changed"]
        assert (await web.get("/api/schedules")).json()[1]["next_at"] == often["next_at"]
        assert (await web.post("/api/schedules/run", json={"id": "no"})).status_code == 404

        engine, at = EngineKeys(keys), 32_503_680_000_000
        await client.hset(engine.cron, "cron:tidy", tick)
        await client.hset(engine.cron_next, "cron:tidy", f"{at}:cron:tidy")
        await client.hset(engine.cron_runs, "cron:tidy", job)
        (shown,) = (await web.get("/api/crons")).json()
        assert datetime.fromisoformat(shown["next_at"]).timestamp() * 1000 == at
        assert (shown["last_job"], shown["last_outcome"]) == (job, "ended")
        page = (await web.get("/schedules")).text
        assert "3000-01-01 00:00:00 UTC" in page
        assert (await web.post("/api/schedules/run", json={"id": "cron:tidy"})).json()["changed"]
        (by_hand,) = (await queue.jobs.list(function="cron:tidy")).jobs
        assert (by_hand.priority, by_hand.state) == ("default", "queued")
        for name in ("often", "cron:tidy"):
            for switch, changes in (("off", [True, False]), ("on", [True, False])):
                done = [await web.post(f"/api/schedules/{switch}", json={"id": name}) for _ in "12"]
                assert [each.json()["changed"] for each in done] == changes
        await web.post("/api/schedules/off", json={"id": "cron:tidy"})
        (cron,) = (await web.get("/api/crons")).json()
        assert cron["name"] == "cron:tidy"
        assert cron["off_since"]
        assert (await web.post("/api/schedules/off", json={"id": "no"})).status_code == 404
        audited = (await web.get("/api/audit")).json()["entries"]
        assert (audited[0]["action"], audited[1]["subject"]) == ("schedules/off", "cron:tidy")
    (row,) = (await queue.jobs.list(function="fails")).jobs
    assert (row.priority, row.state) == ("low", "queued")
