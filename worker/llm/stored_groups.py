"""
Encodes groups for the server, and checks those that are read back.
"""

from __future__ import annotations

from functools import lru_cache

from cache.encoding import codec
from cache.errors import CodecError
from worker.errors import InvalidArgument, Undecodable
from worker.llm.grouping import Group, checked_group


@lru_cache(maxsize=1024)
def encode_group(group: Group) -> bytes:
    return codec.encode([group.provider, group.endpoint, group.model])


@lru_cache(maxsize=1024)
def decode_group(data: bytes) -> Group:
    """
    Decode and check a stored group. It is checked because its endpoint is called with our key.

    Raises:
        Undecodable: it is no group, or one that this service would not have stored.
    """
    try:
        provider, endpoint, model = codec.decode(data)
        return checked_group(provider, endpoint, model)
    except (CodecError, InvalidArgument, TypeError, ValueError) as exc:
        raise Undecodable(f"a stored group cannot be used: {exc}") from None
