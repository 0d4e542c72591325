"""
On a cluster that breaks, no acknowledged job is lost, and none is charged for it.

A ledger outside of the cluster has the jobs that were acknowledged. `make soak` repeats
the faults in random orders.
"""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.support.bus import Bus
from tests.support.cluster_faults import FAULTS, SlotOf
from tests.support.clusters import Cluster, shared_cluster
from tests.support.ledger import lose_nothing

pytestmark = pytest.mark.faults

SEED, ROUNDS = int(os.environ.get("SOAK_SEED", "1")), int(os.environ.get("SOAK_FAULTS", "0"))


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    options = ("--cluster-node-timeout", "2000", "--repl-diskless-sync-delay", "0")
    home = tmp_path_factory.mktemp("faults")
    bus = Bus()
    with shared_cluster(home, *options, replica=True, bus=bus) as nodes:
        yield nodes
    bus.close()


@pytest.fixture
async def place(nodes: Cluster) -> AsyncIterator[SlotOf]:
    place = SlotOf(nodes)
    await place.whole()
    await (await place.owner()).client.flushall()
    yield place
    await nodes.hang_up()


@pytest.mark.parametrize("fault", FAULTS)
async def test_no_job_is_lost_or_charged_for(place: SlotOf, fault: str) -> None:
    await lose_nothing(place, [fault])


@pytest.mark.skipif(not ROUNDS, reason="make soak")
@pytest.mark.timeout(3600)
async def test_faults_in_any_order_lose_nothing(place: SlotOf) -> None:
    await lose_nothing(place, random.Random(SEED).choices(FAULTS, k=ROUNDS))
