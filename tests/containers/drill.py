"""Work goes through the running project while its containers are killed; a ledger outside of it counts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.containers.engine import Failed
from tests.containers.stack import DEADLINE_S, OBSERVING, SERVICES, Stack
from tests.support.wait import eventually_sync

LETTA, RECEIVER = "http://127.0.0.1:8283", "http://127.0.0.1:18001"
WEBHOOKS, REQUESTS, READS = 20, 40, 40
_HOLD_S = 5
# Fails unless the server answers, be it that it wants a password.
_ASK = """
import socket, ssl
s = socket.create_connection(("{server}", 6379), 9)
if {encrypted}:
    trusted = ssl.create_default_context(cafile="/run/secrets/valkey-ca.crt")
    s = trusted.wrap_socket(s, server_hostname="{server}")
s.sendall(b"PING\\r\\n")
assert b"NOAUTH" in s.recv(99)
"""


@dataclass(slots=True)
class Ledger:
    """What was acknowledged, and what was seen of it outside."""

    webhooks: set[str] = field(default_factory=set)
    requests: dict[str, str] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    reads: int = 0
    hits: int = 0
    stale: int = 0


class Drill:
    """Sends, asks and reads through the Letta service. Every call is safe to repeat."""

    def __init__(self, stack: Stack, say: Callable[[str], None]) -> None:
        self.stack = stack
        self.say = say
        self.ledger = Ledger()
        self.numbers = itertools.count()
        self.client = httpx.Client(timeout=30, trust_env=False)

    def run(self) -> None:
        self.work()
        self.settle()
        self.observe()
        self.keep_apart()
        self.kill_each()
        self.work()
        size = self.stack.lose_the_disk()
        self.work()
        self.settle()
        self.say(f"valkey-queue: restored from a backup of {size:,} bytes, nothing lost")
        self.drain()

    def run_encrypted(self) -> None:
        """With compose/tls.yaml: all works through each death, and a server answers nobody in clear."""
        self.work()
        self.settle()
        for server in ("valkey-queue", "valkey-cache"):
            for encrypted in (True, False):
                ask = _ASK.format(server=server, encrypted=encrypted)
                if self.stack.runs("letta-workers", "python3", "-c", ask) is not encrypted:
                    raise Failed(f"{server}, asked with TLS: {encrypted}")
        self.say("tls: all that was acknowledged ended; queue and cache answer nobody in clear")
        self.kill_each()

    def run_shared(self) -> None:
        """With compose/single.yaml: queue and cache work on one server, through its death."""
        self.work()
        self.stack.crash("valkey-queue")
        self.work()
        self.settle()
        if not self.ledger.hits:
            raise Failed("nothing came from the cache")
        self.say("single server: killed, nothing lost, and the cache is used")

    def kill_each(self) -> None:
        """Kill one container after the other, with work before and after."""
        for service in SERVICES:
            self.work()
            seconds = self.stack.crash(service)
            self.work()
            self.settle()
            self.say(f"{service}: killed, healthy again after {seconds:.1f} s, nothing lost")
        for service in OBSERVING:
            seconds = self.stack.crash(service)
            self.say(f"{service}: killed, healthy again after {seconds:.1f} s")
        self.observe()

    # -- work ------------------------------------------------------------------

    def work(self) -> None:
        """Acknowledge webhooks, LLM requests and writes of agents, and read the agents."""
        for _ in range(WEBHOOKS):
            n = next(self.numbers)
            url = f"http://outside:8001/{'flaky/1' if n % 4 == 0 else 'ok'}"
            body = {"id": f"msg_drill_{n}", "url": url, "payload": {"n": n}}
            self.ledger.webhooks.add(self._call("POST", "/webhooks", body)["id"])
        for _ in range(REQUESTS):
            text = f"question {next(self.numbers)}"
            id_ = self._call("POST", "/requests", {"text": text})["id"]
            self.ledger.requests[id_] = text
        for n in range(READS):
            self._agent(f"agent-{n % 4}", write=n % 10 == 0)

    def _agent(self, id_: str, *, write: bool) -> None:
        ledger = self.ledger
        if write:
            version = next(self.numbers)
            self._call("PUT", f"/agents/{id_}", {"version": version})
            ledger.versions[id_] = version
        state = self._call("GET", f"/agents/{id_}")
        ledger.reads += 1
        ledger.hits += state["hit"]
        ledger.stale += state["version"] < ledger.versions.get(id_, 0)

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        """Return the reply. Goes on while a service that was killed is away."""

        def attempt() -> httpx.Response | None:
            try:
                reply = self.client.request(method, f"{LETTA}{path}", json=body)
            except httpx.TransportError:
                return None
            return reply if reply.status_code < 500 else None

        reply = eventually_sync(attempt, deadline_s=DEADLINE_S)
        assert reply is not None
        return reply.raise_for_status().json()

    # -- accounts ----------------------------------------------------------------

    def settle(self) -> None:
        """Wait until all that was acknowledged has ended as it should."""
        ledger = self.ledger
        eventually_sync(lambda: not self._undelivered(), deadline_s=DEADLINE_S)
        waiting = set(ledger.requests)

        def answered() -> bool:
            for id_ in list(waiting):
                reply = self._call("GET", f"/requests/{id_}")
                if reply["state"] == "waiting":
                    return False
                if reply.get("text") != f"echo: {ledger.requests[id_]}":
                    raise Failed(f"request {id_}: {reply}")
                waiting.discard(id_)
            return True

        eventually_sync(answered, deadline_s=DEADLINE_S)
        if ledger.stale:
            raise Failed(f"{ledger.stale} of {ledger.reads} reads were stale")

    def _undelivered(self) -> set[str]:
        """What the receiver itself has not answered with 200, or the queue does not call delivered."""
        seen = self.client.get(f"{RECEIVER}/seen", params={"brief": "1"}).json()
        missing = {
            id_
            for id_ in self.ledger.webhooks
            if not any(status == 200 for _, status in seen.get(id_, []))
        }
        return missing or {
            id_
            for id_ in self.ledger.webhooks
            if self._call("GET", f"/webhooks/{id_}")["state"] != "delivered"
        }

    # -- what watches, and what is kept apart ----------------------------------------

    def observe(self) -> None:
        """Prometheus scrapes with its token, counts the workers and has our rules."""

        def workers() -> bool:
            query = {"query": 'sum(letta_workers{state="working"})'}
            found = self._prometheus("query", query)["result"]
            return bool(found) and found[0]["value"][1] == "2"

        eventually_sync(workers, deadline_s=DEADLINE_S)
        (group,) = self._prometheus("rules", {})["groups"]
        refused = self.client.get("http://127.0.0.1:8484/metrics")
        if refused.status_code != 401:
            raise Failed(f"/metrics without the token: {refused.status_code}")
        self.say(f"prometheus: scrapes, and checks {len(group['rules'])} rules")

    def _prometheus(self, path: str, query: dict[str, str]) -> Any:
        reply = self.client.get(f"http://127.0.0.1:9090/api/v1/{path}", params=query)
        return reply.raise_for_status().json()["data"]

    def keep_apart(self) -> None:
        """Who is on no network with a server does not reach it, and read-only is read-only."""
        for service, target, wanted in (
            ("letta-workers", "valkey-cache:6379", True),
            ("letta-workers", "valkey-letta:6379", False),
            ("letta-workers", "prometheus:9090", False),
            ("letta", "valkey-letta:6379", True),
            ("letta", "prometheus:9090", False),
            ("valkey-cache", "outside:8001", False),
        ):
            host, port = target.split(":")
            dial = f"import socket; socket.create_connection(('{host}', {port}), 3)"
            if self.stack.runs(service, "python3", "-c", dial) is not wanted:
                raise Failed(f"{service} {'does not reach' if wanted else 'reaches'} {target}")
        for service in ("valkey-queue", "valkey-cache", "letta-workers", *OBSERVING):
            if self.stack.runs(service, "python3", "-c", "open('/etc/written', 'w')"):
                raise Failed(f"{service} can write to its root")
        self.say(
            "networks: workers reach neither Letta's locks nor Prometheus; roots are read-only"
        )

    # -- the end -------------------------------------------------------------------

    def drain(self) -> None:
        """Stop every service while a job runs: the workers let it end, within their grace."""
        job = self._call("POST", "/jobs", {"seconds": _HOLD_S})["id"]
        eventually_sync(lambda: self._status(job) == "in_progress", deadline_s=DEADLINE_S)
        self._stop("letta-workers")
        if self._status(job) != "complete":
            raise Failed(f"the drain cut off the running job {job}: {self._status(job)}")
        for service in (
            *("prometheus", "letta-web", "letta"),
            *("valkey-letta", "valkey-cache", "valkey-queue"),
        ):
            self._stop(service)

    def _status(self, job: str) -> str:
        return str(self._call("GET", f"/jobs/{job}")["status"])

    def _stop(self, service: str) -> None:
        seconds, code = self.stack.stop(service)
        grace = self.stack.grace_s(service)
        # uvicorn shuts down and then ends by the signal that it got. After the grace it would be 137.
        if code not in ((0, 143) if service == "letta" else (0,)):
            raise Failed(f"{service} stopped after {seconds:.1f} of {grace:.0f} s with {code}")
        self.say(f"{service}: stopped in {seconds:.1f} of {grace:.0f} s, exit code {code}")
