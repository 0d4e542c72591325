"""`letta-redis server` takes the options of `letta server`."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from letta_redis.__main__ import main

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("options", "asks"), [([], None), (["--secure", "--host", "127.0.0.1"], "true")]
)
def test_secure_makes_the_server_ask_for_its_password(
    options: list[str], asks: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Any] = []
    settings = SimpleNamespace(
        uvicorn_workers=1, uvicorn_reload=False, uvicorn_timeout_keep_alive=5
    )
    monkeypatch.setitem(sys.modules, "letta", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "letta.settings", SimpleNamespace(settings=settings))
    monkeypatch.setenv("LETTA_SERVER_SECURE", "restored after the test")
    monkeypatch.delenv("LETTA_SERVER_SECURE")
    monkeypatch.setattr(
        "uvicorn.run", lambda *_, **__: told.append(os.environ.get("LETTA_SERVER_SECURE"))
    )

    with pytest.raises(SystemExit) as ended:
        main(["server", *options])

    assert (ended.value.code, told) == (0, [asks])
