"""Tests that the HTTP API of a Letta server answers alike with and without the plug-in."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.letta.alike import Player, differences
from tests.letta.postgres import Postgres
from tests.letta.processes import Server, letta_server, model_server
from tests.letta.recorded_calls import CALLS

pytestmark = pytest.mark.acceptance


@pytest.fixture
def servers(
    database_server: Postgres, valkey_url: str, tmp_path: Path
) -> Iterator[tuple[Server, Server]]:
    """One without the plug-in and one with it, each with a database of its own."""
    with ExitStack() as stack:
        models = stack.enter_context(model_server(tmp_path))

        def start(name: str, *, plain: bool) -> Server:
            home = tmp_path / name
            home.mkdir()
            server = letta_server(
                home,
                plain=plain,
                LETTA_REDIS_URL=valkey_url,
                LETTA_PG_URI=database_server.uri(database_server.create()),
                LETTA_ENCRYPTION_KEY="a key of the tests",
                OPENAI_API_KEY="none",
                OPENAI_BASE_URL=models,
            )
            return stack.enter_context(server)

        yield start("plain", plain=True), start("plugin", plain=False)


def played(server: Server) -> Player:
    with server.client() as client:
        player = Player(client)
        player.settle_in()
        for call in CALLS:
            player.play(call)
    return player


def test_the_api_answers_as_without_the_plug_in(servers: tuple[Server, Server]) -> None:
    assert "letta.installed" not in servers[0].log()
    assert "letta.installed halves=['cache', 'queue']" in servers[1].log()

    with ThreadPoolExecutor() as threads:
        plain, plugin = threads.map(played, servers)

    assert len(plain.answers) >= 150
    assert {200, 204, 400, 404, 422} <= {status for _, status, _ in plain.answers}
    assert differences(plain, plugin) == []
