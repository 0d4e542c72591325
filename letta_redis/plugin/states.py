"""
Encodes the agent states of the Letta server and decodes them, with their secrets still encrypted.

Letta decrypts a state's secrets when it has read it. Its loaders run here with that
step left out, and each reader takes it for itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any

# In a value's place: the state cannot be cached, so every reader loads it. It is invalidated
# like a state, so it ends with what made it necessary.
NOT_CACHED = b""
_leave_encrypted: ContextVar[bool] = ContextVar("letta_redis_leave_encrypted", default=False)

Decrypt = Callable[[list[Any]], Awaitable[list[Any]]]


def skipping(decrypt: Decrypt) -> Decrypt:
    """`decrypt`, but not inside `left_encrypted`."""

    @wraps(decrypt)
    async def decrypt_agent_secrets(agents: list[Any]) -> list[Any]:
        return agents if _leave_encrypted.get() else await decrypt(agents)

    return decrypt_agent_secrets


@contextmanager
def left_encrypted() -> Iterator[None]:
    """Read states in this block as they are stored, with encrypted secrets."""
    token = _leave_encrypted.set(True)
    try:
        yield
    finally:
        _leave_encrypted.reset(token)


def to_json(model: Any) -> bytes:
    """The JSON of a model of Letta, or NOT_CACHED if JSON would not bring back the same."""
    try:
        data: bytes = model.model_dump_json(round_trip=True).encode()
        again = type(model).model_validate_json(data).model_dump_json(round_trip=True)
    except ValueError:  # pydantic's errors are
        return NOT_CACHED
    return data if again.encode() == data else NOT_CACHED


async def encode(state: Any, *, sealed: bool) -> bytes:
    """
    The JSON of a state that was read with encrypted secrets. The state is decrypted afterwards.

    NOT_CACHED if JSON would not bring back the same, or if the database holds a secret in clear
    and the cache does not encrypt (`sealed`).
    """
    from letta.utils import decrypt_agent_secrets

    data = to_json(state)
    await decrypt_agent_secrets([state])
    return data if sealed or not _shows_secret(state) else NOT_CACHED


async def decode(data: bytes) -> Any:
    """A state of the caller's own, with its secrets decrypted."""
    from letta.schemas.agent import AgentState
    from letta.utils import decrypt_agent_secrets

    state = AgentState.model_validate_json(data)
    if state.secrets:
        await decrypt_agent_secrets([state])
        # The server's own states hold the same objects in both lists.
        state.secrets[:] = _secrets(state)
    return state


def _secrets(state: Any) -> list[Any]:
    found: list[Any] = state.__dict__["tool_exec_environment_variables"]  # deprecated, so it warns
    return found


def _shows_secret(state: Any) -> bool:
    """
    Whether a decrypted state was stored with a secret in clear.

    Without LETTA_ENCRYPTION_KEY, Letta stores the plaintext where the ciphertext belongs. Whether a
    text looks encrypted does not tell: only that decrypting changed it does.
    """
    return any(
        variable.value_enc is not None
        and variable.value_enc.get_encrypted() is not None
        and variable.value_enc.get_encrypted() == variable.value
        for variable in _secrets(state)
    )
