"""arq's client as our jobs get it, and arq's settings of the queue's server."""

from __future__ import annotations

from typing import Any

from arq.connections import ArqRedis, RedisSettings
from arq.jobs import Job

from cache.connection.shared_scripts import SharedScripts
from cache.connection.urls import Target
from settings import Settings
from worker.errors import InvalidArgument
from worker.keys import QueueKeys
from worker.queue import arguments


class WorkerRedis(SharedScripts, ArqRedis):
    """arq's client with our scripts on one connection; jobs use it as `ctx["redis"]`."""

    async def enqueue_job(
        self, function: str, *args: Any, _job_id: str | None = None, **kwargs: Any
    ) -> Job | None:
        """
        Enqueue as arq does, but refuse ids that could replace our own jobs.

        Raises:
            InvalidArgument: `_job_id` has a reserved prefix or is not a name, or the server is a
                cluster, where arq's fixed keys are in other slots.
        """
        if QueueKeys.of(self) != QueueKeys():
            raise InvalidArgument(
                "arq's enqueue_job cannot reach the queue on a cluster; use open_queue() instead"
            )
        arguments.require_name("function", function)
        if _job_id is not None:
            arguments.require_name("_job_id", _job_id)
            arguments.require_not_our_job("_job_id", _job_id)
        return await super().enqueue_job(function, *args, _job_id=_job_id, **kwargs)


class HiddenRedisSettings(RedisSettings):
    """arq's settings without the password in `repr`."""

    def __repr__(self) -> str:
        return f"RedisSettings(host={self.host!r}, port={self.port!r}, database={self.database!r})"


def arq_redis_settings(target: Target, settings: Settings) -> RedisSettings:
    """Settings of the same server for arq's own client, which `arq --check` uses."""
    files = (settings.redis_ca_file, settings.redis_cert_file, settings.redis_key_file)
    ca, cert, key = (str(path) if path else None for path in files)
    return HiddenRedisSettings(
        host=list(target.nodes)
        if target.kind == "sentinel"
        else (target.nodes or (("", 0),))[0][0],
        port=6379 if target.kind == "sentinel" else (target.nodes or (("", 6379),))[0][1],
        unix_socket_path=target.path or None,
        database=target.db,
        username=target.username,
        password=target.password,
        ssl=target.tls,
        ssl_ca_certs=ca,
        ssl_certfile=cert,
        ssl_keyfile=key,
        ssl_check_hostname=target.tls,
        conn_timeout=max(1, int(settings.redis_connect_timeout_s)),
        conn_retries=1,
        sentinel=target.kind == "sentinel",
        sentinel_master=target.service or "mymaster",
    )
