"""Scripts that fail at one of their writes, as if the server had refused it in the middle."""

from __future__ import annotations

import re
from typing import Any

from cache.connection.scripts import Script

# Which write fails, counted from 1; what has failed. No key: scripts run as they are.
FAIL_AT, HAS_FAILED = "failing:at", "failing:command"
# One line, so that the script's own lines keep their numbers.
_PRELUDE = f"""
local redis = (function(real)
  local at, count = tonumber(real.call('GET', '{FAIL_AT}') or 0), 0
  local function call(name, ...)
    for _, flag in ipairs(real.call('COMMAND', 'INFO', name)[1][3]) do
      count = count + (flag.ok == 'write' and 1 or 0)
      if flag.ok == 'write' and count == at then
        real.call('SET', '{HAS_FAILED}', name)
        error({{err = 'ERR the test lets this write fail'}})
      end
    end
    return real.call(name, ...)
  end
  return at == 0 and real or setmetatable({{call = call}}, {{__index = real}})
end)(redis)
"""


def failing(script: Script) -> Script:
    """The script, with a `redis.call` that fails where `FAIL_AT` says."""
    first = re.match(r"#!.*\n", script.source)
    end = first.end() if first else 0
    prelude = " ".join(_PRELUDE.split()) + " "
    return Script(script.name, script.source[:end] + prelude + script.source[end:])


async def contents(client: Any) -> dict[bytes, Any]:
    """What the keys hold, without times: two runs of one step differ in nothing else."""
    found: dict[bytes, Any] = {}
    for key in [key async for key in client.scan_iter(count=1000)]:
        kind = await client.type(key)
        if kind == b"string":
            found[key] = re.sub(rb"\d{10,}", b"T", await client.get(key))
        elif kind == b"zset":
            rows = await client.zrange(key, 0, -1, withscores=True)
            found[key] = {member: min(score, 1e9) for member, score in rows}
        elif kind == b"hash":
            found[key] = await client.hgetall(key)
    return found
