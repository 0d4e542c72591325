"""
Checks the scripts against a model, in any order of their operations.

The operations: enqueue, claim, renew, lapse, end, park, abort, resend. The server
is real; time passes by moving leases into the past. After every step each job is
in exactly one of the model's states, and the keys agree.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from cache.connection.pool import PoolOptions, close_client, open_pool
from cache.encoding.codec import lua_text
from tests.support.queues import queue_of
from worker.engine import EngineOptions
from worker.engine.leases import renew
from worker.engine.poll import POLL, Poll, WakePoll
from worker.engine.records import Claim, End, read_claims
from worker.keys import EngineKeys, QueueKeys
from worker.queue.priority import Priority

pytestmark = pytest.mark.property

STALLED_COUNT = 3
HOUR_MS = 3_600_000


class Model(RuleBasedStateMachine):
    """`waiting`, `held` (id -> the claim that stands), `done`, `dead`: every job is in one."""

    url = ""
    claims = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.prefix = f"{{m{uuid.uuid4().hex[:10]}}}:"
        self.stack = open_pool(self.url, PoolOptions(), name="model", tag=self.prefix[:-1])
        self.client = self.run(self.stack.__aenter__())
        self.keys = EngineKeys(QueueKeys(self.prefix))
        self.queue = queue_of(self.client, self.prefix)
        self.polls = [
            Poll(
                self.client,
                self.keys,
                EngineOptions(max_lost_leases=STALLED_COUNT, lease_s=HOUR_MS / 1000),
                worker_id=f"w{n}",
            )
            for n in range(2)
        ]
        self.run(self.polls[0].prepare())
        self.waiting: set[str] = set()
        self.held: dict[str, Claim] = {}
        self.stalled_count: dict[str, int] = {}
        self.lapsed: set[str] = set()
        self.done: set[str] = set()
        self.dead: set[str] = set()
        self.marked: set[str] = set()
        self.parked: set[str] = set()
        self.paused: set[str] = set()
        self.kind: dict[str, tuple[str, str]] = {}  # function and priority
        self.kept: list[list[WakePoll]] = [[], []]  # given up; copies may still arrive
        self.count = 0

    def run(self, work: Any) -> Any:
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(close_client(self.client))
        self.run(self.stack.__aexit__(None, None, None))
        self.runner.close()

    # -- what can happen -----------------------------------------------------------

    @rule(priority=st.sampled_from(list(Priority)), function=st.sampled_from(["f", "g"]))
    def enqueue(self, priority: Priority, function: str) -> None:
        job = self.run(self.queue.enqueue(function, priority=priority, job_id=f"j{self.count}"))
        self.kind[job.id] = (function, priority)
        self.count += 1
        self.waiting.add(job.id)

    @rule(
        target=claims,
        worker=st.integers(0, 1),
        stalled_jobs=st.integers(0, 1),
        resend=st.booleans(),
    )
    def claim(self, worker: int, stalled_jobs: int, resend: bool) -> list[Claim]:
        poll = self.polls[worker]
        free = {id_ for id_ in self.waiting | self.lapsed if self.paused.isdisjoint(self.kind[id_])}
        polled = self.run(poll.run([], 2, stalled_jobs=stalled_jobs))
        poisoned, now = polled.poisoned, polled.now
        for id_ in poisoned:
            self._die(id_.decode())
        self._paused_lapsed_go_back()
        if resend:
            polled = self.run(self._again(poll, stalled_jobs))
            assert polled.poisoned == poisoned
        for claim in polled.claims:
            job_id = claim.job_id
            assert job_id in free
            if job_id in self.lapsed:
                self.stalled_count[job_id] = self.stalled_count.get(job_id, 0) + 1
                self.lapsed.discard(job_id)
            assert (claim.mark_ms is not None) == (job_id in self.marked)
            assert claim.stalled_count == self.stalled_count.get(job_id, 0) < STALLED_COUNT
            self.waiting.discard(job_id)
            self.held[job_id] = claim
        tried = [claim for claim in polled.claims if claim.stalled_count == STALLED_COUNT - 1]
        assert len(tried) <= stalled_jobs
        put_off = self._put_off(now)
        assert not put_off or len(tried) == stalled_jobs
        # A poisoned job counts toward the limit of the poll that found it.
        assert len(polled.claims) >= min(2, len(free - self.dead - put_off)) - len(poisoned)
        claims: list[Claim] = polled.claims
        return claims

    @rule(
        target=claims,
        worker=st.integers(0, 1),
        reply=st.sampled_from(["heard", "lost", "late"]),
    )
    def claim_the_next(self, worker: int, reply: str) -> list[Claim]:
        """A wake poll; its reply may be lost, or a copy may arrive after it was settled."""
        poll = self.polls[worker]
        polled = poll.wake_poll()
        due = [self._due(number) for number in range(4)]
        for kept in self.kept[worker]:
            assert self.run(self._send(kept)) == []
        if reply == "late":
            assert self.run(poll.settle(polled)) == []
            self.kept[worker].append(polled)
        rows = self.run(self._send(polled))
        if reply == "lost":
            assert self.run(poll.settle(polled)) == rows
        if reply != "heard":
            # A copy arrives after it was settled.
            assert self.run(self._send(polled)) == []
        found = read_claims(rows)
        heads = [ids[0] for ids in due if ids]
        is_plain = len(heads) == 1 and heads[0] in self.waiting and not self.paused
        assert [claim.job_id for claim in found] == (heads if is_plain and reply != "late" else [])
        for claim in found:
            assert (claim.stalled_count, claim.tries) == (0, self._tries(claim.job_id))
            assert (claim.mark_ms is not None) == (claim.job_id in self.marked)
            self.waiting.discard(claim.job_id)
            self.held[claim.job_id] = claim
        return found

    async def _send(self, polled: WakePoll) -> Any:
        return await self.client.execute_command(*polled.command)

    def _due(self, number: int) -> list[str]:
        now = time.time() * 1000
        ids = self.run(self.client.zrangebyscore(self.keys.queues[number], "-inf", now))
        return [id_.decode() for id_ in ids]

    def _tries(self, job_id: str) -> int:
        return int(self.run(self.client.get(self.keys.base.retry(job_id))) or 0)

    async def _again(self, poll: Poll, stalled_jobs: int) -> Any:
        """Send the last poll again, as after a lost reply."""
        poll.number -= 1
        return await poll.run([], 2, stalled_jobs=stalled_jobs)

    def _paused_lapsed_go_back(self) -> None:
        """A poll gives lapsed jobs back whose function or priority is paused, as many as it looks at."""
        for id_ in sorted(self.lapsed):
            if self.run(self.client.zscore(self.keys.running, id_)) is None:
                assert not self.paused.isdisjoint(self.kind[id_])
                self.lapsed.discard(id_)
                del self.held[id_]
                self.stalled_count.pop(id_, None)
                self.waiting.add(id_)

    def _put_off(self, now: int) -> set[str]:
        """The lapsed stalled jobs that the poll at `now` deferred: they count as held again."""
        ends = {id_: self.run(self.client.zscore(self.keys.running, id_)) for id_ in self.lapsed}
        found = {id_ for id_, end in ends.items() if end > now}
        assert all(self.stalled_count.get(id_, 0) == STALLED_COUNT - 2 for id_ in found)
        for id_ in found:
            # Deferred by a second only: make it an hour, as no time passes here.
            self.run(self.client.zadd(self.keys.running, {id_: now + HOUR_MS}))
        self.lapsed -= found
        return found

    @rule(name=st.sampled_from(["f", "g", *Priority]))
    def pause_or_resume(self, name: str) -> None:
        given: dict[str, Any] = {"priority" if name in list(Priority) else "function": name}
        if name in self.paused:
            assert self.run(self.queue.resume(**given))
        else:
            assert self.run(self.queue.pause(**given))
        self.paused ^= {name}

    @rule()
    def leases_lapse(self) -> None:
        past = time.time() * 1000 - 1
        for job_id in self.held:
            self.run(self.client.zadd(self.keys.running, {job_id: past}, xx=True))
            self.lapsed.add(job_id)

    @rule(claims=claims)
    def renew(self, claims: list[Claim]) -> None:
        for claim in claims:
            lost = self.run(renew(self.client, self.keys, [claim], lease_ms=HOUR_MS))
            stands = self._stands(claim)
            assert lost == ([] if stands else [claim])
            if stands:
                self.lapsed.discard(claim.job_id)

    @rule(claims=claims, kind=st.sampled_from(["done", "retry", "back", "dead", "park"]))
    def end(self, claims: list[Claim], kind: str) -> None:
        kinds: dict[str, dict[str, Any]] = {
            "done": {"result": lua_text(b"r"), "ttl": 60_000},
            "retry": {"delay": 0, "tries": 1},
            "back": {"due": "1"},
            "dead": {"reason": "failed", "error": "E", "tries": 1, "name": "f"},
            "park": {"most": HOUR_MS, "reason": "unknown", "error": "E", "tries": 0, "name": "f"},
        }
        ends: list[End] = [claim.end(kind, kinds[kind]) for claim in claims]
        polled = self.run(self.polls[0].run(ends, 0))
        late = [i for i, claim in enumerate(claims) if not self._stands(claim)]
        assert polled.late == late
        for index, claim in enumerate(claims):
            if index not in late:
                self._ended(claim.job_id, kind)

    def _ended(self, job_id: str, kind: str) -> None:
        del self.held[job_id]
        self.lapsed.discard(job_id)
        self.stalled_count.pop(job_id, None)
        if kind in ("done", "dead"):
            self._forget(job_id)
        elif kind == "park":
            self.parked.add(job_id)
            # Its pause is over.
            for name in self.keys.queues:
                self.run(self.client.zadd(name, {job_id: 1}, xx=True))
        {"done": self.done, "dead": self.dead}.get(kind, self.waiting).add(job_id)

    def _die(self, job_id: str) -> None:
        assert self.stalled_count.get(job_id, 0) + 1 == STALLED_COUNT
        self.held.pop(job_id)
        self.lapsed.discard(job_id)
        self._forget(job_id)
        self.dead.add(job_id)

    def _forget(self, job_id: str) -> None:
        self.marked.discard(job_id)
        self.parked.discard(job_id)

    def _stands(self, claim: Claim) -> bool:
        return self.held.get(claim.job_id) is claim or (
            claim.job_id in self.held and self.held[claim.job_id].token == claim.token
        )

    # -- what always holds -----------------------------------------------------------

    @invariant()
    def keys_agree(self) -> None:
        live = self.waiting | set(self.held)
        known = sorted(self.done | self.dead | live)
        base = self.keys.base
        pipe = self.client.pipeline(transaction=False)
        for name in (*self.keys.queues, self.keys.running, base.dead, base.abort):
            pipe.zrange(name, 0, -1)
        pipe.hkeys(base.parked)
        for job_id in known:
            pipe.exists(base.job(job_id))
        found = self.run(pipe.execute())
        *members, parked = [[id_.decode() for id_ in ids] for ids in found[:8]]
        queued = [id_ for ids in members[:4] for id_ in ids]
        assert len(queued) == len(set(queued)), "in two queues"
        assert set(queued) == live
        assert set(members[4]) == set(self.held)
        assert set(members[5]) == self.dead
        assert set(members[6]) == self.marked
        assert set(parked) == self.parked
        assert not (self.done | self.dead) & live
        assert [bool(kept) for kept in found[8:]] == [job_id in live for job_id in known]


def test_the_scripts_agree_with_the_model(valkey_url: str) -> None:
    assert POLL.source.startswith("#!lua")
    Model.url = valkey_url
    run_machine(
        Model,
        settings=settings(
            max_examples=30,
            stateful_step_count=40,
            suppress_health_check=list(HealthCheck),
        ),
    )
