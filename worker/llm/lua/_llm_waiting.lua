-- Shared step: a request's place among those of its group that wait for a batch.
-- p: what the LLM keys begin with (`arq:llm:`); keys written: groups, pending:<gid>, sizes:<gid>
-- Returns how many wait now, their bytes and tokens.
local function start_waiting(p, gid, descriptor, id, bytes, tokens, command)
  local sizes = p .. 'sizes:' .. gid
  local count = redis.call(command, p .. 'pending:' .. gid, id)
  if count == 1 then
    redis.call('HSET', p .. 'groups', gid, descriptor)
  end
  return count, redis.call('HINCRBY', sizes, 'bytes', bytes), redis.call('HINCRBY', sizes, 'tokens', tokens)
end

-- Takes `bytes` and `tokens` of requests that left the list off the group's sums.
local function stopped_waiting(p, gid, bytes, tokens)
  if redis.call('EXISTS', p .. 'pending:' .. gid) == 0 then
    redis.call('HDEL', p .. 'groups', gid)
    redis.call('DEL', p .. 'sizes:' .. gid)
  else
    redis.call('HINCRBY', p .. 'sizes:' .. gid, 'bytes', -bytes)
    redis.call('HINCRBY', p .. 'sizes:' .. gid, 'tokens', -tokens)
  end
end
