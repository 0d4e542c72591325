"""
Encodes and decodes Letta's agent states, without decrypting their secrets.

Letta decrypts the secrets of each state that it reads. Loaders of the cache skip that
step, and each reader decrypts its own copy.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

# Stored instead of a value that cannot be cached: every reader loads it. It is invalidated like
# the value, so it ends with the write that ends its cause.
NOT_CACHED = b""
_leave_encrypted: ContextVar[bool] = ContextVar("letta_redis_leave_encrypted", default=False)

Decrypt = Callable[[list[Any]], Awaitable[list[Any]]]


def skipping(decrypt: Decrypt) -> Decrypt:
    """`decrypt`, skipped inside `left_encrypted`."""

    @wraps(decrypt)
    async def decrypt_agent_secrets(agents: list[Any]) -> list[Any]:
        return agents if _leave_encrypted.get() else await decrypt(agents)

    return decrypt_agent_secrets


@contextmanager
def left_encrypted() -> Iterator[None]:
    """Read states in this block as they are stored: with encrypted secrets."""
    token = _leave_encrypted.set(True)
    try:
        yield
    finally:
        _leave_encrypted.reset(token)


def to_json(model: Any) -> bytes:
    """The JSON of a model of Letta; NOT_CACHED if it would not decode to the same model."""
    try:
        data: bytes = model.model_dump_json(round_trip=True).encode()
        again = type(model).model_validate_json(data).model_dump_json(round_trip=True)
    except ValueError:  # pydantic's errors are
        return NOT_CACHED
    return data if again.encode() == data else NOT_CACHED


async def encode(state: Any, *, sealed: bool) -> bytes:
    """
    Encode a state that was read with encrypted secrets, then decrypt the state itself.

    Returns NOT_CACHED if the JSON would not decode to the same state, or if the database holds a
    secret in clear and the cache does not encrypt (`sealed`).
    """
    from letta.utils import decrypt_agent_secrets

    data = to_json(state)
    await decrypt_agent_secrets([state])
    return data if sealed or not _shows_secret(state) else NOT_CACHED


async def decode(data: bytes) -> Any:
    """Decode a copy for one caller, with its secrets decrypted."""
    from letta.schemas.agent import AgentState
    from letta.utils import decrypt_agent_secrets

    state = AgentState.model_validate_json(data)
    if state.secrets:
        await decrypt_agent_secrets([state])
        # In the server's own states both lists hold the same objects.
        state.secrets[:] = _secrets(state)
    return state


def _secrets(state: Any) -> list[Any]:
    found: list[Any] = state.__dict__["tool_exec_environment_variables"]  # deprecated, so it warns
    return found


def _shows_secret(state: Any) -> bool:
    """
    Whether a decrypted state was stored with a secret in clear.

    Without LETTA_ENCRYPTION_KEY, Letta stores the plaintext in the ciphertext's column. The form
    of a text does not tell, so compare it with the decrypted one.
    """
    return any(
        variable.value_enc is not None
        and variable.value_enc.get_encrypted() is not None
        and variable.value_enc.get_encrypted() == variable.value
        for variable in _secrets(state)
    )
