"""No secret appears in clear text in Redis, logs, errors or reprs."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

import settings as settings_module
from cache import open_cache
from cache.connection.pool import PoolOptions, open_pool
from cache.connection.readiness import wait_until_ready
from cache.connection.urls import parse_url, redacted
from cache.errors import CacheError, RedisUnavailable, UnsupportedRedisURL
from settings import Settings, SettingsError, load_settings
from tests.support import jobs
from tests.support.llm import ENDPOINT, body
from tests.support.queues import open_queue, stores_of
from tests.support.servers import free_port, raw_server, valkey
from tests.support.stored import everything_stored
from tests.support.wait import eventually
from tests.support.workers import quick_settings, running_worker
from worker import JobFailed, JobQueue, RequestFailed, WorkerError, WorkerSettings
from worker.app.arq_client import arq_redis_settings
from worker.app.composition import build_llm_context, build_webhook_context
from worker.app.options import queue_options, reveal
from worker.http.scrub import scrub, spellings
from worker.web.access import Access
from worker.web.app import build_app
from worker.web.site import Site
from worker.webhooks.headers import is_secret

pytestmark = pytest.mark.integration


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


MARK = "m4rk3d"
PASSWORD = f"p@ss#{MARK}?r/d:%41"
SIGNING = "whsec_" + b64(f"{MARK}-signing-0123456789abcdef")
OWN = "whsec_" + b64(f"{MARK}-own-secret-0123456789abc")
WEBHOOK_KEY = b64(f"{MARK}-webhook-key-0123456789abc"[:32].ljust(32, "x"))
CACHE_KEY = b64(f"{MARK}-cache-key-0123456789abcde"[:32].ljust(32, "y"))
OPENAI, ANTHROPIC = f"sk-{MARK}-openai", f"sk-{MARK}-anthropic"
BEARER, HEADER, COOKIE = f"{MARK}-bearer", f"{MARK}-x-auth", f"session={MARK}"
WORKERS_BEARER, WEB_TOKEN = f"{MARK}-workers-bearer", f"{MARK}-web-token"
SECRETS = (
    PASSWORD, SIGNING, OWN, WEBHOOK_KEY, CACHE_KEY, OPENAI, ANTHROPIC, BEARER, HEADER, COOKIE,
    WORKERS_BEARER, WEB_TOKEN,
)  # fmt: skip


def clear_secrets(text: str) -> list[str]:
    """Return which marked secrets the text shows, with or without their prefix and encoding."""
    parts = [*SECRETS, *(s.removeprefix("whsec_") for s in SECRETS), MARK]
    return [part for part in parts if part in text]


# -- URLs --------------------------------------------------------------------------

PASSWORDS = ("p@ss", "p#ss", "p?ss", "p/ss", "p:ss", "@#?/:", "%40", "p ss", "pass\u2100", "[::1]")
FORMS = (
    "redis://:{}@h:6379/0",
    "rediss://user:{}@h",
    "redis+sentinel://user:{}@a:1,b:2/svc",
    "redis+cluster://:{}@a:1,b",
    "unix://user:{}@/tmp/valkey.sock?db=1",
)
# With an `@` in the password, these would name another host: they are of other forms then.
WITHOUT_AT = ("redis://user:{}", "redis://h/0?password={}", "redis://h/0#{}")
BROKEN = (
    "redis://user:{}@h:port/0",
    "redis://user:{}@h/zero",
    "redis://user:{}@a:1,b:2/0",
    "http://user:{}@h",
    "user:{}@h",
    "redis://user:{}@[::1/0",
)


@pytest.mark.parametrize(
    ("form", "special"),
    [
        *product([*FORMS, *BROKEN], PASSWORDS),
        *product(WITHOUT_AT, [password for password in PASSWORDS if "@" not in password]),
    ],
)
def test_no_url_shows_its_password_however_it_is_written(form: str, special: str) -> None:
    url = form.format(f"{MARK}{special}{MARK}")
    shown = [redacted(url)]
    try:
        target = parse_url(url)
    except UnsupportedRedisURL as exc:
        shown += [str(exc), repr(exc)]
    else:
        shown += [repr(target), str(target)]
    try:
        shown.append(repr(load_settings(redis_url=url, cache_redis_url=url)))
    except SettingsError as exc:
        shown += [str(exc), repr(exc)]
    assert not [text for text in shown if MARK in text]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("special", [p for p in PASSWORDS if "%" not in p])
def test_a_password_may_hold_any_character(form: str, special: str) -> None:
    target = parse_url(form.format(f"a{special}b"))
    assert target.password == f"a{special}b"
    assert parse_url(form.format("plain")).nodes == target.nodes


# -- headers -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "X-Auth",
        "x-pass",
        "X-Tenant",
        "x-credential",
        "X-Session",
        "apikey",
        "X-Shop-Hmac",
        "cookie",
    ],
)
def test_a_header_not_known_as_harmless_is_encrypted(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["Content-Type", "traceparent", "X-Request-Id"])
def test_a_harmless_header_needs_no_key(name: str) -> None:
    assert not is_secret(name)


def test_a_truncated_echo_is_scrubbed_too() -> None:
    hidden = spellings(["Bearer abcdefgh-1", 'with "quotes" in it', "short"])
    text = b'x abcdefgh-1 y Bearer abcdefgh-1 {"a":"with \\"quotes\\" in it"} short'
    assert scrub(text, hidden) == b'x *** y *** {"a":"***"} short'
    assert scrub(b"begins abcdefg", hidden, is_cut=True) == b"begins ***"
    assert scrub(b"begins abc", hidden, is_cut=True) == b"begins abc"


# -- a whole run -------------------------------------------------------------------


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A server that echoes requests: a provider's call as a refusal, a webhook as text."""
    head = await reader.readuntil(b"\r\n\r\n")
    sent = head.decode("latin-1")
    provider = "/v1/" in sent.split("\r\n", 1)[0]
    text = (
        json.dumps({"error": {"message": f"bad key in: {sent}", "code": "x"}}) if provider else sent
    )
    data = text.encode()
    status = "400 Bad Request" if provider else "500 No"
    writer.write(
        f"HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {len(data)}\r\n\r\n".encode()
        + data
    )
    await writer.drain()
    writer.close()


@asynccontextmanager
async def marked_settings(tmp_path: Path, form: str) -> AsyncIterator[tuple[Settings, str]]:
    """Settings with a marked secret wherever one fits, for the test's own servers."""
    with valkey(tmp_path / "v", "--requirepass", PASSWORD.replace("%41", "A")) as port:
        async with raw_server(echo) as http:
            url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
            yield (
                quick_settings(
                    url,
                    cache_redis_url=url,
                    worker_functions=jobs.FUNCTIONS,
                    worker_log_level="DEBUG",
                    worker_log_format=form,
                    webhook_secret=SIGNING,
                    webhook_bearers=f"{WORKERS_BEARER}@http://127.0.0.1:{http}/mine",
                    web_token=WEB_TOKEN,
                    webhook_encryption_key=WEBHOOK_KEY,
                    webhook_max_attempts=2,
                    worker_retry_base_s=0.01,
                    cache_encryption_keys=f"k1:{CACHE_KEY}",
                    openai_base_url=f"http://127.0.0.1:{http}/v1",
                    openai_api_key=OPENAI,
                    anthropic_base_url=f"http://127.0.0.1:{http}",
                    anthropic_api_key=ANTHROPIC,
                    llm_batch_max_age_s=0.1,
                ),
                f"http://127.0.0.1:{http}",
            )


# Whoever asks for one of these by its name asks for the secret itself.
HOLDERS = {"password", "secrets", "bearers", "webhook_encryption_key"}


def everything_printed(root: Any) -> Iterator[str]:
    """Return `repr` and `str` of an object and of all our public objects below it."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, (str, bytes, int, float, type(None))):
            continue
        seen.add(id(thing))
        yield repr(thing)
        yield str(thing)
        if isinstance(thing, (list, tuple, set, frozenset)):
            waiting += thing
        elif isinstance(thing, dict):
            waiting += thing.values()
        elif type(thing).__module__.split(".")[0] in {"cache", "worker", "settings"}:
            names = [n for n in dir(thing) if not n.startswith("_") and n not in HOLDERS]
            waiting += [v for name in names if not callable(v := _value(thing, name))]


def _value(thing: Any, name: str) -> Any:
    try:
        return getattr(thing, name)
    except Exception as exc:  # noqa: BLE001  (what a property raises is printed, too)
        return exc


@pytest.mark.parametrize("form", ["json", "console"])
async def test_a_run_with_secrets_leaves_none_in_clear_text(
    tmp_path: Path, form: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    async with marked_settings(tmp_path, form) as (settings, http):
        monkeypatch.setattr("tests.support.jobs.get_settings", lambda: settings)
        monkeypatch.setattr(settings_module, "get_settings", lambda: settings)
        async with open_queue(settings) as queue, open_cache(settings) as cache:
            await cache.agents.set("a1", {"state": f"{MARK}-in-the-cache"})
            assert await cache.agents.get("a1") == {"state": f"{MARK}-in-the-cache"}
            hook: dict[str, Any] = {
                "secret": OWN,
                "bearer": BEARER,
                "headers": {"X-Auth": HEADER, "cookie": COOKIE},
            }
            delivery = await queue.send_webhook(f"{http}/hook", {}, event_type="x", **hook)
            mine = await queue.send_webhook(f"{http}/mine", {}, event_type="x")
            job = await queue.enqueue("explode_with_a_secret")
            urgent = [
                await queue.submit_llm_request(
                    body(name, "now"), provider=name, endpoint=ENDPOINT[name], urgent=True
                )
                for name in ENDPOINT
            ]
            batched = [
                await queue.submit_llm_request(
                    body(name, "later"), provider=name, endpoint=ENDPOINT[name]
                )
                for name in ENDPOINT
            ]
            printed.append(await everything_stored(stores_of(queue).client))
            async with running_worker(settings) as worker:
                for id_ in [*urgent, *batched]:
                    with pytest.raises(RequestFailed, match="bad key in") as failed:
                        await queue.llm_result(id_, timeout_s=20)
                    printed += everything_printed(failed.value)
                with pytest.raises(JobFailed) as broken:
                    await job.result(timeout_s=20)
                printed += everything_printed(broken.value)

                async def ended() -> Any:
                    found = await queue.delivery(delivery)
                    return found if found.state == "dead" else None

                found = await eventually(ended)
                assert b"POST /hook" in found.attempts[0].response
                assert await eventually(lambda: _is_dead(queue, mine))
                echoed = (await queue.delivery(mine)).attempts[0].response
                assert b"POST /mine" in echoed
                assert b"uthorization: ***" in echoed
                printed += everything_printed([found, found.to_dict(), job, queue, worker])
                printed += everything_printed(await queue.delivery(mine))
            letters = await queue.dead.list()
            printed += everything_printed([letters, await queue.stats(), cache, cache.stats()])
            printed += everything_printed(await queue.llm.batches.list())
            printed += everything_printed(await queue.webhooks.events())
            printed.append(await everything_stored(stores_of(queue).client))
            target = parse_url(settings.redis_url)
            redis_settings = arq_redis_settings(target, settings)
            printed += everything_printed([settings, queue_options(settings), target])
            printed += [
                repr(redis_settings),
                str(redis_settings),
                repr(stores_of(queue).client),
                repr(WorkerSettings),
            ]
            stores = stores_of(queue)
            contexts = [
                build(settings, stores) for build in (build_webhook_context, build_llm_context)
            ]
            parts = [part for whole in (stores, *contexts) for part in vars_of(whole)]
            printed += everything_printed([stores, *contexts, *parts])
            printed += await asked_for_metrics(queue, reveal(settings.web_token))
            wrongs: tuple[dict[str, Any], ...] = (
                {"secret": f"whsec_{MARK}!"},
                {"headers": {"x": f"{MARK}\n"}},
                {"headers": {"host": MARK}},
                {"bearer": f"{MARK}\n"},
            )
            for wrong in wrongs:
                with pytest.raises(WorkerError) as refused:
                    await queue.send_webhook(http, {}, event_type="x", **wrong)
                printed += everything_printed(refused.value)
    captured = capfd.readouterr()
    assert "job." in captured.err
    printed += [captured.out, captured.err]
    shown = [(clear_secrets(text), text[:300]) for text in printed if clear_secrets(text)]
    assert shown == []


async def _is_dead(queue: JobQueue, id_: str) -> bool:
    return (await queue.delivery(id_)).state == "dead"


async def asked_for_metrics(queue: JobQueue, token: str | None) -> list[str]:
    """What the web application says with its token, with a wrong one, and of itself."""
    app = build_app(Site(queue, Access(token)))
    said = [repr(app), *(repr(route) for route in app.routes)]
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost"
    ) as client:
        for given, status in ((token, 200), (f"{token}x", 401)):
            headers = {"authorization": f"Bearer {given}"}
            answer = await client.get("/metrics", headers=headers)
            assert answer.status_code == status
            said += [answer.text, repr(answer.headers)]
    return said


def vars_of(deps: Any) -> list[Any]:
    return [getattr(deps, name) for name in deps.__dataclass_fields__]


async def test_errors_of_an_unreachable_server_show_no_password() -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0"
    printed: list[str] = []
    options = PoolOptions(connect_timeout_s=0.2, retries=0)
    async with open_pool(url, options, name="t") as client:
        with pytest.raises(RedisUnavailable) as away:
            await wait_until_ready(client, url, deadline_s=0)
    printed += everything_printed(away.value)
    for work in (open_queue, open_cache):
        with pytest.raises((CacheError, WorkerError)) as caught:
            async with work(load_settings(redis_url=url.replace("/0", "/zero"))):
                pass
        printed += everything_printed(caught.value)
    assert [one for text in printed for one in clear_secrets(text)] == []


async def test_a_wrong_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    with valkey(tmp_path / "v", "--requirepass", "another") as port:
        url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        async with open_queue(quick_settings(url)) as queue:
            with pytest.raises(WorkerError) as caught:
                await queue.enqueue("add", 1)
    assert [one for text in everything_printed(caught.value) for one in clear_secrets(text)] == []
