"""OpenAI's own client reads what the local model server sends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.letta.model_server import ANSWER, MODELS
from tests.letta.processes import model_server

pytestmark = pytest.mark.acceptance


def test_the_client_of_openai_reads_every_answer(tmp_path: Path) -> None:
    from openai import OpenAI

    messages: Any = [{"role": "user", "content": "hello"}]
    with model_server(tmp_path) as url, OpenAI(base_url=url, api_key="none") as client:
        names = [model.id for model in client.models.list()]
        whole = client.chat.completions.create(model=MODELS[0], messages=messages)
        parts: Any = client.chat.completions.create(model=MODELS[0], messages=messages, stream=True)
        text = "".join(part.choices[0].delta.content or "" for part in parts)
        embedded = client.embeddings.create(model=MODELS[1], input=["a", "b"])

    assert names == list(MODELS)
    assert whole.choices[0].message.content == ANSWER
    assert text.split() == ANSWER.split()
    assert [len(row.embedding) for row in embedded.data] == [1536, 1536]
