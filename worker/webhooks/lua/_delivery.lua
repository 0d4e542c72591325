-- Shared steps of the delivery scripts. Needs types and put_job before it.
-- Every key is derived from the prefix p: webhook:<id> webhook-attempts:<id> webhook-target:<target>
-- webhook-slots:<target> webhook-parked:<target> webhook-endpoint:<endpoint> webhook-disabled
-- webhook-order:<order> webhook-ended:<state> webhook-events webhook-open; of jobs: the four queues,
-- queue:wake, job:<id> in-progress:<id> result:<id>
local QUEUES = {'queue:critical', 'queue:high', 'queue', 'queue:low'}
local TARGET_TTL_MS, ENDPOINT_TTL_MS = 86400000, 7776000000
local MOST_EVENTS = 1000
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
    if type(redis.pcall('ZSCORE', p .. queue, job)) == 'string' then
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

-- Wake at most `most` parked deliveries of a target, the longest parked first.
local function promote(p, target, most)
  local key = p .. 'webhook-parked:' .. target
  local rows, moved = redis.pcall('ZRANGE', key, 0, most + 9, 'WITHSCORES'), 0
  for i = 1, #rows, 2 do
    if moved >= most then
      return
    end
    local how = wake(p, rows[i], rows[i + 1])
    if how ~= 'running' then
      redis.call('ZREM', key, rows[i])
    end
    if how == 'moved' then
      moved = moved + 1
    end
  end
end

-- Park a delivery behind its target. returns ms until it tries without being woken
local function park(p, target, id, since, wait)
  local key = p .. 'webhook-parked:' .. target
  redis.call('ZADD', key, since, id)
  local rank = redis.call('ZRANK', key, id)
  return math.max(wait, 0) + look_ms(rank)
end

local function tell(p, kind, name, value)
  -- For whoever looks: nothing else depends on it.
  redis.pcall('XADD', p .. 'webhook-events', 'MAXLEN', '~', MOST_EVENTS, '*', 'kind', kind, name, value)
end

-- Stop deliveries to an endpoint until it is enabled.
local function disable(p, endpoint, reason, now)
  local key = p .. 'webhook-endpoint:' .. endpoint
  redis.call('HSET', key, 'disabled', now, 'reason', reason)
  redis.call('PERSIST', key)
  redis.call('ZADD', p .. 'webhook-disabled', now, endpoint)
  tell(p, 'endpoint_disabled', 'endpoint', endpoint)
end

-- returns the time until which a target is closed, Unix ms (0: open), and how often its breaker opened
local function closed_until(p, target)
  local row = redis.call('HMGET', p .. 'webhook-target:' .. target, 'pause', 'open_until', 'opens')
  return math.max(number_of(row[1], 0), number_of(row[2], 0)), number_of(row[3], 0)
end
