"""
Submits LLM requests that share one batch; each gets its own answer or error.

    .venv/bin/python -m examples.llm_requests

It uses a local OpenAI-compatible server. For OpenAI itself, set
LETTA_OPENAI_BASE_URL=https://api.openai.com/v1 and LETTA_OPENAI_API_KEY;
a batch may take hours there.
"""

from __future__ import annotations

from typing import Any

from examples.running import run
from letta_redis import RequestFailed, open_queue
from worker.demo.serving import running

ENDPOINT = "/v1/chat/completions"


def chat(text: str) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}


def text_of(answer: dict[str, Any]) -> str:
    return str(answer["choices"][0]["message"]["content"])


async def main() -> None:
    async with open_queue() as queue:
        # A batch costs half the price. It is sent when it is full, at its maximum age, or by a flush.
        bodies = [chat("one"), chat("please fail"), chat("two")]
        ids = await queue.submit_many(bodies, provider="openai", endpoint=ENDPOINT)
        job = await queue.flush_llm_batches()
        print("batches:", await job.result(timeout_s=60))
        for request_id in ids:
            try:
                print("answer:", text_of(await queue.llm_result(request_id, timeout_s=60)))
            except RequestFailed as exc:
                print("error:", exc)

        # An urgent request is sent at once as a direct call.
        urgent = await queue.submit_llm_request(
            chat("now"), provider="openai", endpoint=ENDPOINT, urgent=True
        )
        print("urgent:", text_of(await queue.llm_result(urgent, timeout_s=60)))


if __name__ == "__main__":
    with running("worker.demo.openai_server") as url:
        run(
            main,
            openai_base_url=f"{url}/v1",
            # Without it, requests reach public addresses only.
            llm_allow_cidrs="127.0.0.0/8",
            llm_poll_interval_s=0.1,
        )
