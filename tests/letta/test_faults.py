"""A server under load makes no errors and serves nothing older, whatever becomes of Valkey."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from redis import Redis

from tests.letta.postgres import Postgres
from tests.letta.processes import letta_server, model_server
from tests.letta.test_server import make_agent
from tests.support.servers import free_port, valkey
from tests.support.wait import eventually_sync

pytestmark = pytest.mark.faults

_AGENTS = 2
_REQUESTS = 3  # of each client, in each phase; a message takes far longer than they
_DEADLINE_S = 600.0


@dataclass(slots=True)
class Load:
    """
    Clients that read, write and message agents until told to stop.

    Attributes:
        acknowledged: by agent, the last number that a write has put into its description.
        requests: by client, how many were answered.
        errors: method, status and text of the answers that were no success.
        older: answers that were older than an acknowledged write.
    """

    url: str
    acknowledged: dict[str, int] = field(default_factory=dict)
    requests: list[int] = field(default_factory=list)
    errors: list[tuple[str, str, str]] = field(default_factory=list)
    older: list[str] = field(default_factory=list)
    stopping: threading.Event = field(default_factory=threading.Event)

    def client(self) -> httpx.Client:
        # A slow answer is no error: a busy machine gives those, too.
        return httpx.Client(base_url=self.url, timeout=_DEADLINE_S)

    def write(self, client: httpx.Client, agent: str) -> None:
        number = self.acknowledged[agent] + 1
        if self.send(client, "PATCH", f"/v1/agents/{agent}", {"description": str(number)}):
            self.acknowledged[agent] = number
        self.read(client, agent)

    def read(self, client: httpx.Client, agent: str) -> None:
        least = self.acknowledged[agent]
        answer = self.send(client, "GET", f"/v1/agents/{agent}")
        if answer and int(answer.json()["description"]) < least:
            self.older.append(f"{agent} {answer.json()['description']} after {least}")

    def talk(self, client: httpx.Client, agent: str) -> None:
        body = {"messages": [{"role": "user", "content": "hello"}]}
        self.send(client, "POST", f"/v1/agents/{agent}/messages", body)

    def send(
        self, client: httpx.Client, method: str, path: str, body: object = None
    ) -> httpx.Response | None:
        """The answer, if it is a success."""
        try:
            answer = client.request(method, path, json=body)
        except httpx.HTTPError as exc:
            self.errors.append((method, type(exc).__name__, str(exc)))
            return None
        if answer.is_success:
            return answer
        self.errors.append((method, str(answer.status_code), answer.text[:300]))
        return None

    def run(self, number: int, act: Callable[[httpx.Client, str], None], agent: str) -> None:
        with self.client() as client:
            while not self.stopping.is_set():
                act(client, agent)
                self.requests[number] += 1

    def goes_on(self) -> None:
        """Return when each client has got some more answers. The first may have been asked for before."""
        *requests, messages = self.requests
        wanted = [*(count + _REQUESTS for count in requests), messages + 1]
        eventually_sync(
            lambda: all(now >= then for now, then in zip(self.requests, wanted, strict=True)),
            deadline_s=_DEADLINE_S,
        )

    @contextmanager
    def running(self) -> Iterator[None]:
        """Make agents, and send requests until the block ends."""
        with self.client() as client:
            self.acknowledged = {make_agent(client)["id"]: 0 for _ in range(_AGENTS)}
            for agent in self.acknowledged:
                self.send(client, "PATCH", f"/v1/agents/{agent}", {"description": "0"})
        jobs = [(act, agent) for agent in self.acknowledged for act in (self.write, self.read)]
        jobs.append((self.talk, next(iter(self.acknowledged))))
        self.requests = [0] * len(jobs)
        threads = [
            threading.Thread(target=self.run, args=(number, *job))
            for number, job in enumerate(jobs)
        ]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            for thread in threads:
                thread.join(_DEADLINE_S)


def test_a_server_under_load_outlives_each_fault_of_valkey(
    database_server: Postgres, tmp_path: Path
) -> None:
    port, database = free_port(), database_server.create()
    with (
        model_server(tmp_path) as models,
        letta_server(
            tmp_path,
            LETTA_REDIS_URL=f"redis://127.0.0.1:{port}/0",
            LETTA_PG_URI=database_server.uri(database),
            LETTA_ENCRYPTION_KEY="a key of the tests",
            OPENAI_API_KEY="none",
            OPENAI_BASE_URL=models,
            LETTA_LLM_REQUEST_TIMEOUT_SECONDS=str(int(_DEADLINE_S)),
        ) as server,
    ):
        load = Load(server.url)
        with load.running():
            load.goes_on()  # without any Valkey
            faults(load, tmp_path / "valkey", port)
        query = "SELECT id, description FROM agents"
        stored = dict(database_server.execute(query, database))
        with load.client() as client:
            shown = [
                (agent, client.get(f"/v1/agents/{agent}").json()["description"])
                for agent in [*load.acknowledged] * 2
            ]

    assert load.errors == []
    assert load.older == []
    assert {agent: int(stored[agent]) for agent in load.acknowledged} == load.acknowledged
    assert set(shown) == set(stored.items())
    assert "Traceback" not in server.log()


def faults(load: Load, home: Path, port: int) -> None:
    """What may become of Valkey, each time while requests go on."""
    redis = Redis(port=port)
    # It keeps what it has, so that a restart brings back values that were changed meanwhile.
    keep = ("--appendonly", "yes")
    with valkey(home, *keep, port=port):
        cached(redis, load)
        redis.flushall()
        cached(redis, load)
        pid = int(redis.info("server")["process_id"])
        os.kill(pid, signal.SIGSTOP)
        try:
            load.goes_on()
        finally:
            os.kill(pid, signal.SIGCONT)
        cached(redis, load)
        os.kill(pid, signal.SIGKILL)
        load.goes_on()
    for arguments in (keep, keep, ()):  # after the kill; ended and started at once; then empty
        with valkey(home, *arguments, port=port):
            cached(redis, load)


def cached(redis: Redis, load: Load) -> None:
    """Return when agents are in the cache again, and requests went on."""
    eventually_sync(lambda: any(redis.scan_iter("lc:{agent-*")), deadline_s=_DEADLINE_S)
    load.goes_on()
