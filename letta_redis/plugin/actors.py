"""Puts the cache in front of the method that reads the user of a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from typing import TYPE_CHECKING, Any

from cache.errors import InvalidName
from cache.logs import get_logger
from letta_redis.plugin.messages import LoadFailed
from letta_redis.plugin.runtime import Runtime
from letta_redis.plugin.seams import Feature, Seam

if TYPE_CHECKING:
    from cache.service import Cache

log = get_logger("letta_redis")


def _reading(runtime: Runtime, original: Any) -> Any:
    @wraps(original)
    async def get_actor_by_id_async(self: Any, actor_id: Any) -> Any:
        load = partial(original, self, actor_id)
        cache = runtime.cache_to_read()
        if cache is None or not isinstance(actor_id, str):
            return await load()
        return await _read(cache, actor_id, load)

    return get_actor_by_id_async


async def _read(cache: Cache, actor_id: str, load: Callable[[], Awaitable[Any]]) -> Any:
    import letta
    from letta.schemas.user import User

    async def loader() -> bytes:
        try:
            data: str = (await load()).model_dump_json()
        except Exception as exc:
            raise LoadFailed from exc
        return data.encode()

    try:
        data = await cache.agents.get_or_load(actor_id, loader, scope=f"{letta.__version__}:actor")
        return User.model_validate_json(data)
    except (LoadFailed, InvalidName):
        pass
    except Exception:
        log.exception("letta.cache_read_failed", actor_id=actor_id)
    return await load()


FEATURE = Feature(
    "actors",
    "cache",
    (
        Seam(
            "letta.services.user_manager:UserManager.get_actor_by_id_async",
            "reads the user of a request through the cache",
            "(self, actor_id)",
            digests=("d53c6611614b8c80",),
            replace=_reading,
        ),
        Seam(
            "letta.schemas.user:User",
            "defines what is cached of a user",
            None,
            digests=("542838abae12682e",),
        ),
    ),
)
