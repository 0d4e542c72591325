-- Shared step: move a job from the running ones back into its queue, due at the given time.
local function put_back(prefix, keys, number, id, due)
  redis.call('ZADD', keys[number], due, id)
  redis.call('ZREM', keys[5], id)
  redis.call('DEL', prefix .. 'in-progress:' .. id)
end
