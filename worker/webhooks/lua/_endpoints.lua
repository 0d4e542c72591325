-- Shared step: disable an endpoint, and keep the indexes of endpoints bounded. Needs types and delivery before it.
local MOST_EVENTS, MOST_ENDPOINTS = 1000, 10000
-- Added to the score of an endpoint that an operator disabled: it sorts first and does not expire.
local BY_HAND = -1e13

local function add_event(p, kind, endpoint)
  -- For whoever looks: nothing else depends on it.
  redis.pcall('XADD', p .. 'webhook-events', 'MAXLEN', '~', MOST_EVENTS, '*', 'kind', kind, 'endpoint', endpoint)
end

-- Forget the oldest endpoints of an index that are past their TTL or over the limit, at most 20 per
-- call. An endpoint that is used again is checked anew. Scores below 0 are an operator's: they stay.
local function thin(p, index, now)
  local first = redis.call('ZCOUNT', index, '-inf', '(0')
  local old = redis.call('ZCOUNT', index, 0, now - ENDPOINT_TTL_MS)
  local over = math.min(20, math.max(old, redis.call('ZCARD', index) - first - MOST_ENDPOINTS))
  if over > 0 then
    for _, endpoint in ipairs(redis.call('ZRANGE', index, first, first + over - 1)) do
      redis.call('DEL', p .. 'webhook-endpoint:' .. endpoint)
    end
    redis.call('ZREMRANGEBYRANK', index, first, first + over - 1)
  end
end

-- Call before any write to an endpoint.
local function expect_endpoints(p)
  expect('zset', p .. 'webhook-disabled', p .. 'webhook-failing')
end

-- Stop deliveries to an endpoint until it is enabled.
local function disable(p, endpoint, reason, now)
  local key, by_hand = p .. 'webhook-endpoint:' .. endpoint, reason == 'by_hand'
  redis.call('HSET', key, 'disabled', now, 'reason', reason)
  redis.call('ZREM', p .. 'webhook-failing', endpoint)
  redis.call('ZADD', p .. 'webhook-disabled', by_hand and now + BY_HAND or now, endpoint)
  if by_hand then
    redis.call('PERSIST', key)
  else
    redis.call('PEXPIRE', key, ENDPOINT_TTL_MS)
    thin(p, p .. 'webhook-disabled', now)
  end
  add_event(p, 'endpoint_disabled', endpoint)
end
