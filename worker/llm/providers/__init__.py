"""LLM providers behind one small protocol: OpenAI and whatever speaks like it, and Anthropic."""

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
