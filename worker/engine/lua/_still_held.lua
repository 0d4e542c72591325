-- Shared step: whether a due job that has a claim is still held. It is included in poll.lua.

-- A due job may still run: an abort moved it, or a stock worker holds it.
local function still_held(id, claim, queue)
  -- A stock worker's claim has a TTL; a claim without one has no owner.
  if not string.find(claim, '|', 1, true) and redis.call('PTTL', prefix .. 'in-progress:' .. id) > 0 then
    redis.call('ZADD', queue, 'XX', now + 1000, id)
    return true
  end
  local ends = redis.call('ZSCORE', KEYS[5], id)
  if ends and tonumber(ends) > now then
    redis.call('ZADD', queue, 'XX', ends, id)
    return true
  end
  return false
end
