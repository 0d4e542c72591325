"""Starts and controls the fake provider."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from worker.demo.serving import running


class FakeProvider:
    """A handle on the fake in its process; `openai_url` and `anthropic_url` are its base URLs."""

    def __init__(self, url: str) -> None:
        self.openai_url = f"{url}/v1"
        self.anthropic_url = f"{url}/anthropic"
        self._http = httpx.Client(base_url=url, trust_env=False)

    def set(self, **settings: Any) -> None:
        self._http.put("/_/settings", json=settings).raise_for_status()

    def fault(self, method: str, path: str, action: str, **more: Any) -> None:
        fault = {"method": method, "path": path, "action": action, **more}
        self._http.post("/_/faults", json=fault).raise_for_status()

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = self._http.get("/_/report").json()
        return found

    def calls(self, name: str) -> int:
        return int(self.report()["calls"].get(name, 0))

    def reset(self) -> None:
        self._http.post("/_/reset").raise_for_status()

    def close(self) -> None:
        self._http.close()


@contextmanager
def fake_provider() -> Iterator[FakeProvider]:
    with running("tests.support.fake_provider") as url:
        fake = FakeProvider(url)
        try:
            yield fake
        finally:
            fake.close()
