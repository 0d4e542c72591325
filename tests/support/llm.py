"""Makes LLM requests for either provider and reads their answers as text."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from settings import Settings
from tests.support.providers import FakeProvider
from tests.support.workers import quick_settings
from worker import JobQueue, RequestFailed

ENDPOINT = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}
PROVIDERS = tuple(ENDPOINT)
CREATE = {"openai": "POST /v1/batches", "anthropic": "POST /anthropic/v1/messages/batches"}


def body(provider: str, text: str, model: str = "m") -> dict[str, Any]:
    more = {"max_tokens": 9} if provider == "anthropic" else {}
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def settings_for(url: str, fake: FakeProvider, **overrides: Any) -> Settings:
    values: dict[str, Any] = {
        "openai_base_url": fake.openai_url,
        "openai_api_key": "k",
        "anthropic_base_url": fake.anthropic_url,
        "anthropic_api_key": "k",
        "llm_batch_max_age_s": 0.1,
        "llm_batch_cron": "0 0 1 1 *",
        "llm_unconfirmed_wait_s": 0.4,
    }
    return quick_settings(url, **{**values, **overrides})


async def submit(queue: JobQueue, provider: str, *texts: str, **more: Any) -> list[str]:
    bodies = [body(provider, text) for text in texts]
    return await queue.submit_many(bodies, provider=provider, endpoint=ENDPOINT[provider], **more)


async def outcome(queue: JobQueue, request_id: str, timeout_s: float = 20) -> str:
    """Return the answer's text, or `error <kind>`."""
    try:
        answer = await queue.llm_result(request_id, timeout_s=timeout_s)
    except RequestFailed as exc:
        return f"error {exc.kind}"
    choices = answer.get("choices")
    return str(choices[0]["message"]["content"] if choices else answer["content"][0]["text"])


async def outcomes(queue: JobQueue, ids: Sequence[str]) -> list[str]:
    return list(await asyncio.gather(*(outcome(queue, id_) for id_ in ids)))
