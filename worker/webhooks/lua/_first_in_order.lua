-- Shared step: whether a delivery is the first open one of its order. Needs types and delivery before it.

-- returns true at the head of its order | false, rank behind an open delivery
local function is_first(order, id)
  local line = p .. 'webhook-order:' .. order
  local head, looks = redis.call('ZRANGE', line, 0, 0)[1], 0
  while head and head ~= id do
    looks = looks + 1
    if looks > 100 then
      -- Many deleted deliveries are in front. The next attempt continues here.
      return false, 0
    end
    local state = fields_of(p .. 'webhook:' .. head, 'state')[1]
    if state and not ENDED[state] then
      return false, redis.call('ZRANK', line, id) or 0
    end
    redis.call('ZREM', line, head)
    head = redis.call('ZRANGE', line, 0, 0)[1]
  end
  return true
end
