"""`letta-redis server` is the Letta server, with the plug-in, whatever becomes of Valkey."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import httpx
import pytest

from letta_redis.__main__ import main
from tests.letta.model_server import ANSWER
from tests.letta.postgres import Postgres
from tests.letta.processes import letta_server, model_server
from tests.support.servers import free_port, valkey
from tests.support.wait import eventually_sync

pytestmark = pytest.mark.acceptance


def make_agent(client: httpx.Client) -> Any:
    body = {
        "name": "an agent",
        "model": "openai-proxy/gpt-4o-mini",
        "embedding": "openai/text-embedding-3-small",
        "memory_blocks": [{"label": "human", "value": "a person"}],
        "include_base_tools": True,
    }
    answer = client.post("/v1/agents/", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_server_serves_while_valkey_comes_and_goes(
    database_server: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    monkeypatch.setenv("LETTA_REDIS_URL", url)
    with (
        model_server(tmp_path) as models,
        letta_server(
            tmp_path,
            LETTA_REDIS_URL=url,
            LETTA_PG_URI=database_server.uri(database_server.create()),
            LETTA_ENCRYPTION_KEY="a key of the tests",
            OPENAI_API_KEY="none",
            OPENAI_BASE_URL=models,
        ) as server,
        server.client() as client,
    ):
        assert "letta.installed halves=['cache', 'queue']" in server.log()
        agent = make_agent(client)
        path = f"/v1/agents/{agent['id']}"
        away = client.get(path)

        with valkey(tmp_path / "valkey", port=port):
            assert_switches(server, "off")
            off = client.get(path)
            assert_switches(server, "on")
            there = client.get(path), client.get(path)
            sent = {"messages": [{"role": "user", "content": "hello"}]}
            answer = client.post(f"{path}/messages", json=sent)

        gone = client.get(path)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) in (0, -signal.SIGTERM)

    assert [each.status_code for each in (away, off, *there, gone)] == [200] * 5
    assert away.json() == off.json() == there[0].json() == there[1].json()
    assert ANSWER in answer.text
    assert gone.json()["message_ids"] != away.json()["message_ids"]
    assert "Traceback" not in server.log()


def assert_switches(server: Any, state: str) -> None:
    """The command changes the switch of the running server, which logs it."""
    from settings import get_settings

    get_settings.cache_clear()
    with pytest.raises(SystemExit) as ended:
        main(["switch", "agent-cache", state])
    assert ended.value.code == 0
    wanted = f"letta.switched half='agent_cache' on={state == 'on'} by_server=True"
    eventually_sync(lambda: wanted in server.log(), deadline_s=60)
