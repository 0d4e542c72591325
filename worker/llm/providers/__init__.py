"""LLM providers behind one protocol: OpenAI-compatible endpoints and Anthropic."""

from worker.llm.providers.anthropic import AnthropicProvider
from worker.llm.providers.openai import OpenAIProvider
from worker.llm.providers.protocol import (
    BatchesUnsupported,
    Busy,
    Lines,
    Provider,
    RemoteBatch,
    Unclear,
    Unsent,
)

__all__ = [
    "AnthropicProvider",
    "BatchesUnsupported",
    "Busy",
    "Lines",
    "OpenAIProvider",
    "Provider",
    "RemoteBatch",
    "Unclear",
    "Unsent",
]
