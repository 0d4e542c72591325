"""
Asks the server whether this user may run every command of the queue's scripts.

A script stops at a command that is denied, and keeps what it wrote before. Everything
else that could stop it is checked by the script before it writes, or by the server
before it starts.
"""

from __future__ import annotations

from typing import Any

COMMANDS = (
    "BITFIELD", "DEL", "EXISTS", "GET", "GETEX", "GETRANGE", "HDEL", "HEXISTS", "HGET", "HGETALL",
    "HLEN", "HMGET", "HSCAN", "HSET", "HSETNX", "HSTRLEN", "INCRBY", "LINDEX", "LLEN", "LPOP", "LPOS",
    "LPUSH", "LREM", "LSET", "LTRIM", "MGET", "PERSIST", "PEXPIRE", "PTTL", "PUBLISH", "RENAME",
    "RPUSH", "SADD", "SCARD", "SET", "SETRANGE", "SREM", "STRLEN", "TIME", "UNLINK", "XADD",
    "ZADD", "ZCARD", "ZCOUNT", "ZMSCORE", "ZRANGE", "ZRANGEBYSCORE", "ZRANK", "ZREM",
    "ZREMRANGEBYRANK", "ZREMRANGEBYSCORE", "ZSCORE",
)  # fmt: skip

# Servers before Redis 7 cannot say it. EXISTS needs what every script needs: to run, and its keys.
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
