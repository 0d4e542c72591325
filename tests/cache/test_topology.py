"""The owner of a slot: whom the nodes name, and when they are asked again."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from cache.connection.protocol import Away
from cache.connection.topology import Address, Topology, View, read_view
from tests.support.wait import eventually

pytestmark = pytest.mark.unit

A, B, C = ("a", 1), ("b", 2), ("c", 3)
ALL = (A, B, C)


class Nodes:
    """What each node answers; a node that is not here refuses."""

    def __init__(self, **views: View) -> None:
        self.views = views
        self.asked: Counter[Address] = Counter()
        self.moves: list[Address] = []

    async def ask(self, address: Address) -> View:
        self.asked[address] += 1
        await asyncio.sleep(0)
        view = self.views.get(address[0])
        if view is None:
            raise RedisConnectionError("refused")
        return replace(view, asked=address)

    def topology(self, *seeds: Address) -> Topology:
        return Topology(seeds or (A,), self.ask, self.moves.append)


def view(owner: Address, epoch: int = 1, *, serves: bool = True) -> View:
    return View(serves, epoch, owner, ALL, ("", 0))


async def test_concurrent_callers_share_one_round() -> None:
    nodes = Nodes(a=view(B))
    topology = nodes.topology()
    assert await asyncio.gather(*(topology.owner() for _ in range(50))) == [B] * 50
    assert nodes.asked == {A: 1}
    assert nodes.moves == [B]


async def test_a_close_while_it_asks_is_an_outage_to_callers() -> None:
    asked, never = asyncio.Event(), asyncio.Event()

    async def ask(_address: Address) -> View:
        asked.set()
        await never.wait()
        raise AssertionError

    topology = Topology((A,), ask, lambda _: None)
    calls = [asyncio.create_task(topology.owner()) for _ in range(2)]
    await asked.wait()
    await topology.close()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(each) for each in found] == [Away, Away]


async def test_the_next_seed_answers_for_one_that_is_away() -> None:
    assert await Nodes(b=view(C)).topology(A, B).owner() == C


async def test_a_cluster_that_is_away_is_an_error() -> None:
    with pytest.raises(RedisConnectionError, match="refused"):
        await Nodes().topology(A, B).owner()


async def test_a_node_that_is_cut_off_is_not_believed() -> None:
    for old in (view(A, 1), view(A, 2, serves=False)):
        nodes = Nodes(a=old, b=view(C, 2), c=view(C, 2))
        assert await nodes.topology(A, B, C).owner() == C


async def test_a_node_that_names_the_owner_is_believed_at_once() -> None:
    nodes = Nodes(a=view(A))
    topology = nodes.topology()
    await topology.owner()
    topology.suspect(A, named=B)
    assert await topology.owner() == B
    assert nodes.moves == [A, B]
    assert nodes.asked == {A: 1}


async def test_a_report_about_another_node_than_the_owner_is_ignored() -> None:
    nodes = Nodes(a=view(A))
    topology = nodes.topology()
    await topology.owner()
    topology.suspect(B)
    assert await topology.owner() == A
    assert nodes.asked == {A: 1}


async def test_callers_rest_until_another_node_owns_the_slot() -> None:
    nodes = Nodes(a=view(A), b=view(A))
    topology = nodes.topology()
    await topology.owner()
    del nodes.views["a"]
    topology.suspect(A)
    resting = asyncio.create_task(topology.rest(60))
    await eventually(lambda: _is(nodes.asked[B] > 1))
    assert not resting.done()
    assert await topology.owner() == A, "nobody else has it yet"
    nodes.views = {"b": view(B, 2)}
    async with asyncio.timeout(20):
        await resting
    assert await topology.owner() == B
    await topology.close()


async def test_a_suspected_node_that_lets_a_client_in_is_trusted_again() -> None:
    nodes = Nodes(a=view(A))
    topology = nodes.topology()
    await topology.owner()
    topology.suspect(A)
    topology.confirm(A)
    asked = nodes.asked[A]
    assert await topology.owner() == A
    assert nodes.asked[A] == asked
    await topology.close()


async def test_a_suspected_node_that_answers_is_trusted_again() -> None:
    """It was slow, or only a connection ended; as long as it serves, nobody else is asked again."""
    nodes = Nodes(a=view(A, serves=False), b=view(A), c=view(A))
    topology = nodes.topology()
    await topology.owner()
    topology.suspect(A)
    await eventually(lambda: _is(nodes.asked[A] > 2))
    resting = asyncio.create_task(topology.rest(60))
    nodes.views["a"] = view(A)
    async with asyncio.timeout(20):
        await resting
    asked = nodes.asked[A]
    assert await topology.owner() == A
    assert nodes.asked[A] == asked
    await topology.close()


async def test_a_stopped_node_does_not_hold_up_the_others() -> None:
    stopped = asyncio.Event()

    async def ask(address: Address) -> View:
        if address == A:
            await stopped.wait()
        return replace(view(B), asked=address)

    async with asyncio.timeout(20):
        assert await Topology((A, B), ask, lambda _: None).owner() == B


def test_a_view_is_read_from_the_replies_of_a_node() -> None:
    info = b"cluster_state:ok\r\ncluster_current_epoch:7\r\n"
    first = [0, 5, [b"", 7001, b"id"], [b"10.0.0.2", 7002, b"id"]]
    second = [6, 16383, [b"?", 7003, b"id"], [None, 7004, b"id"]]
    asked = ("seed", 1)
    found = read_view(3, [first, second], info, asked)
    assert found == View(
        serves=True,
        epoch=7,
        owner=("seed", 7001),
        nodes=(("seed", 7001), ("10.0.0.2", 7002), ("seed", 7003), ("seed", 7004)),
        asked=asked,
    )
    assert read_view(6, [first], info, asked).owner is None


async def _is(value: bool) -> bool:
    return value
