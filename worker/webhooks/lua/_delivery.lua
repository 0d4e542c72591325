-- Shared steps of the delivery scripts. Needs types before it.
-- Every key is derived from the prefix p: webhook:<id> webhook-attempts:<id> webhook-endpoint:<endpoint>
-- webhook-limits:<endpoint> webhook-slots:<endpoint> webhook-parked:<endpoint> webhook-host:<host>
-- webhook-line:<host> webhook-disabled webhook-failing webhook-order:<order> webhook-ended:<state>
-- webhook-events webhook-open; of jobs: the four queues, queue:wake, job:<id> in-progress:<id> result:<id>
local LIMITS_TTL_MS, ENDPOINT_TTL_MS = 86400000, 7776000000
local ENDED = {delivered = true, dead = true, disabled = true}

-- The interval at which a waiting delivery tries without being woken. It grows with the delivery's
-- rank, so that a long queue costs little.
local function look_ms(rank)
  return math.min(60000, 1000 + 20 * rank)
end

-- Park a delivery behind those of its endpoint. returns ms until it tries without being woken
local function park(p, endpoint, id, since, wait)
  local key = p .. 'webhook-parked:' .. endpoint
  redis.call('ZADD', key, since, id)
  local rank = redis.call('ZRANK', key, id)
  return math.max(wait, 0) + look_ms(rank)
end

-- returns the time until which an endpoint is closed, Unix ms (0: open)
local function closed_until(p, endpoint)
  local row = redis.call('HMGET', p .. 'webhook-limits:' .. endpoint, 'pause', 'open_until')
  return math.max(number_of(row[1], 0), number_of(row[2], 0))
end
