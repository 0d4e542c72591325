"""
Checks that the server runs the queue's scripts, and that the user may run all their commands.

A script stops at a command that is denied, and keeps what it wrote before. Everything
else that could stop it is checked by the script before it writes, or by the server before
it starts. Scripts check by themselves for rights that were taken away later (`--@rights`,
cache/connection/scripts.py), except those that run for every job: they write the decisive
part last, so that the call that is sent again completes the first one
(tests/app/test_security_denied.py, tests/queue/test_security_rights_taken.py).
"""

from __future__ import annotations

from typing import Any

from redis.exceptions import RedisError, ResponseError

from cache.connection.refusals import refusal_of

COMMANDS = (
    "BITFIELD", "DEL", "EXISTS", "GET", "GETRANGE", "HDEL", "HEXISTS", "HGET", "HGETALL",
    "HLEN", "HMGET", "HSCAN", "HSET", "HSETNX", "HSTRLEN", "INCRBY", "LINDEX", "LLEN", "LPOP", "LPOS",
    "LPUSH", "LRANGE", "LREM", "LSET", "LTRIM", "MGET", "MSETNX", "PERSIST", "PEXPIRE", "PTTL", "PUBLISH", "RENAME",
    "RPUSH", "SADD", "SCARD", "SET", "SETRANGE", "SREM", "STRLEN", "TIME", "UNLINK", "XADD",
    "ZADD", "ZCARD", "ZCOUNT", "ZMSCORE", "ZRANGE", "ZRANGEBYSCORE", "ZRANK", "ZREM",
    "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE", "ZSCORE",
)  # fmt: skip

# Servers before Redis 7 cannot tell. EXISTS needs the rights that every script needs.
_PROBE = """
local denied = {}
for _, name in ipairs(redis.acl_check_cmd and ARGV or {}) do
  if not redis.acl_check_cmd(name, KEYS[1], KEYS[1]) then
    table.insert(denied, name)
  end
end
if #denied > 0 then
  return redis.error_reply('NOPERM the user may not run ' .. table.concat(denied, ' ') .. ' on ' .. KEYS[1])
end
return redis.call('EXISTS', KEYS[1])
"""


async def require_rights(client: Any, queue: str) -> None:
    """
    Raises:
        ResponseError: NOPERM, with the commands that are denied.
    """
    await client.eval(_PROBE, 1, queue, *COMMANDS)


# What the scripts rely on, and services have been seen to lack; what shows it. The last key of
# each is derived in the script.
_NEEDS = (
    ("scripts", "return 1"),
    ("TIME in a script", "return redis.call('TIME')"),
    ("a key that a script derives", "return redis.call('EXISTS', KEYS[1] .. ':absent')"),
    ("cmsgpack in a script", "return cmsgpack.pack({1})"),
)


async def require_commands(client: Any, queue: str) -> None:
    """
    Refuse a service that lacks what the queue needs.

    Raises:
        RedisError: "lacks ...", with what is lacking and the service's own words.
    """
    for name, script in _NEEDS:
        try:
            await client.eval("#!lua flags=no-writes\n" + script, 1, queue)
        except ResponseError as exc:
            raise _lacking(name, exc) from None
    try:
        # In a transaction it does not wait. Outside, the server checks waits only ten times a second.
        async with client.pipeline(transaction=True) as pipe:
            pipe.bzpopmin(f"{queue}:absent", timeout=1)
            await pipe.execute()
    except ResponseError as exc:
        raise _lacking("BZPOPMIN", exc) from None


def _lacking(name: str, error: ResponseError) -> RedisError:
    if refusal_of(error) is not None:
        return error
    return ResponseError(f"this service lacks {name}: {error}")
