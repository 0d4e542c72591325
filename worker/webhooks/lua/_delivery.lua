-- Shared steps of the delivery scripts. Needs types and put_job before it.
-- Every key is derived from the prefix p: webhook:<id> webhook-attempts:<id> webhook-endpoint:<endpoint>
-- webhook-limits:<endpoint> webhook-slots:<endpoint> webhook-parked:<endpoint> webhook-host:<host>
-- webhook-line:<host> webhook-disabled webhook-failing webhook-order:<order> webhook-ended:<state>
-- webhook-events webhook-open; of jobs: the four queues, queue:wake, job:<id> in-progress:<id> result:<id>
local QUEUES = {'queue:critical', 'queue:high', 'queue', 'queue:low'}
local LIMITS_TTL_MS, ENDPOINT_TTL_MS = 86400000, 7776000000
local MOST_EVENTS, MOST_ENDPOINTS = 1000, 10000
-- Added to the score of an endpoint that an operator disabled: it sorts first and does not expire.
local BY_HAND = -1e13
local ENDED = {delivered = true, dead = true, disabled = true}

-- The interval at which a waiting delivery tries without being woken. It grows with the delivery's
-- rank, so that a long queue costs little.
local function look_ms(rank)
  return math.min(60000, 1000 + 20 * rank)
end

-- Make a waiting delivery's job due, but not before its `after`. returns moved | running | gone
local function wake(p, id, due)
  local row = fields_of(p .. 'webhook:' .. id, 'job', 'after')
  local job = row[1]
  if not job then
    return 'gone'
  end
  -- `after` is a delay that the caller or the policy requested.
  due = math.max(number_of(due, 0), number_of(row[2], 0))
  if redis.call('EXISTS', p .. 'in-progress:' .. job) == 1 then
    return 'running'
  end
  local found = false
  for _, queue in ipairs(QUEUES) do
    if type(allowed(redis.pcall('ZSCORE', p .. queue, job))) == 'string' then
      redis.call('ZADD', p .. queue, 'XX', 'LT', due, job)
      found = true
    end
  end
  if not found then
    return 'gone'
  end
  redis.pcall('ZADD', p .. 'queue:wake', 0, 'w')
  return 'moved'
end

-- Wakes of one call. Whoever is left out tries without being woken.
local wakes_left = 80
-- Wake at most `most` parked deliveries of an endpoint, the longest parked first. returns how many
local function promote(p, endpoint, most)
  local key = p .. 'webhook-parked:' .. endpoint
  local rows, moved = redis.pcall('ZRANGE', key, 0, math.min(most, wakes_left) + 9, 'WITHSCORES'), 0
  for i = 1, #rows, 2 do
    if moved >= most or wakes_left <= 0 then
      return moved
    end
    wakes_left = wakes_left - 1
    local how = wake(p, rows[i], rows[i + 1])
    if how ~= 'running' then
      redis.call('ZREM', key, rows[i])
    end
    if how == 'moved' then
      moved = moved + 1
    end
  end
  return moved
end

-- Park a delivery behind those of its endpoint. returns ms until it tries without being woken
local function park(p, endpoint, id, since, wait)
  local key = p .. 'webhook-parked:' .. endpoint
  redis.call('ZADD', key, since, id)
  local rank = redis.call('ZRANK', key, id)
  return math.max(wait, 0) + look_ms(rank)
end

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

-- returns the time until which an endpoint is closed, Unix ms (0: open)
local function closed_until(p, endpoint)
  local row = redis.call('HMGET', p .. 'webhook-limits:' .. endpoint, 'pause', 'open_until')
  return math.max(number_of(row[1], 0), number_of(row[2], 0))
end
