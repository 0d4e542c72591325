"""Every script stays in one slot of a cluster, and does nothing in a slot that is half moved."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from redis.crc import key_slot
from redis.exceptions import RedisError

from cache.connection.scripts import absent_beside
from tests.app.test_security_half_states import CASES, KEYS, case_of_a_cluster
from tests.support.clusters import Cluster, Node, half_moved, shared_cluster
from tests.support.half_states import RefusedStep, snapshot, traced

pytestmark = pytest.mark.faults

SLOT = key_slot(KEYS.wake.encode())


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with shared_cluster(tmp_path_factory.mktemp("slots")) as nodes:
        yield nodes


@pytest.fixture
async def owner(nodes: Cluster) -> AsyncIterator[Node]:
    """The node of the slot, without any key."""
    owner = nodes.node_of(KEYS.wake)
    for node in nodes.nodes:
        await node.client.flushall()
    yield owner
    await nodes.hang_up()


@pytest.mark.parametrize("name", CASES)
async def test_a_script_stays_in_the_slot_of_its_keys(owner: Node, name: str) -> None:
    prepare, step = case_of_a_cluster(name, owner.client)
    await prepare()
    used, declared = await traced(owner.client, step)
    assert used
    assert {key_slot(key) for key in used} == {SLOT}
    for keys in declared:
        assert keys[-1].decode() == absent_beside(keys[0].decode())
        assert len(keys) > 1
        assert not await owner.client.exists(keys[-1])


@pytest.mark.parametrize("name", CASES)
async def test_a_script_is_refused_whole_in_a_half_moved_slot(
    nodes: Cluster, owner: Node, name: str
) -> None:
    prepare, step = case_of_a_cluster(name, owner.client)
    target = next(node for node in nodes.nodes if node is not owner)
    await prepare()
    async with half_moved(owner, target, SLOT):
        before = await snapshot(owner.client), await moved(target)
        with pytest.raises((RedisError, RefusedStep)):
            await step()
        assert (await snapshot(owner.client), await moved(target)) == before


async def moved(target: Node) -> dict[bytes, bytes]:
    """What the target has of the slot that it does not own yet."""
    found = {}
    async with target.client.client() as one:
        for key in await target.cluster("GETKEYSINSLOT", SLOT, 1000):
            await one.execute_command("ASKING")
            found[key] = await one.dump(key)
    return found
