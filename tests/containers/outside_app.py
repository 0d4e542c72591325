"""Receives webhooks and answers LLM requests: what is outside of the compose file."""

from letta_redis.worker.demo import openai_server, receiver
from starlette.applications import Starlette

app = Starlette(
    routes=[*receiver.app.routes, *openai_server.build_app(with_batches=True).routes],
)
