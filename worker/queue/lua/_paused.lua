-- Shared step: whether a function or its priority is paused. The caller has checked the type of the key.
local function is_paused(paused, name, priority)
  local found = redis.call('HMGET', paused, 'function:' .. name, 'priority:' .. priority)
  return found[1] or found[2]
end
