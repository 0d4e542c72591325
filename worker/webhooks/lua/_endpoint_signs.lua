-- Shared step: what an attempt's end says about its endpoint. Needs promote, shared_states and endpoints before it.

local function endpoint_answers(endpoint, slow_down, said)
  if endpoint.failures > 0 or endpoint.opens > 0 then
    redis.call('HDEL', endpoint.limits, 'failures', 'opens', 'open_until', 'probe', 'probe_until')
    forget_endpoint(endpoint.name)
    if endpoint.opens > 0 then
      add_event(p, 'circuit_closed', endpoint.name)
      said[#said + 1] = 'circuit_closed'
      promote(p, endpoint.name, terms.concurrency)
    end
  end
  if endpoint.share and not slow_down then
    -- Additive increase: the share grows by one for each `share` answers.
    local share = endpoint.share + 1 / endpoint.share
    redis.call('HDEL', endpoint.limits, 'slow')
    if share >= terms.concurrency then
      redis.call('HDEL', endpoint.limits, 'share')
    else
      redis.call('HSET', endpoint.limits, 'share', share)
    end
    forget_endpoint(endpoint.name)
  end
end

local function endpoint_fails(endpoint, draw, said)
  local failures = endpoint.failures + 1
  redis.call('HSET', endpoint.limits, 'failures', failures)
  redis.call('PEXPIRE', endpoint.limits, LIMITS_TTL_MS)
  forget_endpoint(endpoint.name)
  local is_open, limit = endpoint.open_until > now, terms.breaker_failures
  if limit > 0 and not is_open and (endpoint.opens > 0 or failures >= limit) then
    local opens = endpoint.opens + 1
    redis.call('HSET', endpoint.limits, 'opens', opens)
    local length = math.min(terms.open_max, terms.open * 2 ^ math.min(opens - 1, 30))
    -- Random, so that breakers that opened together do not probe together.
    redis.call('HSET', endpoint.limits, 'open_until', now + math.ceil(length * (0.8 + 0.4 * draw)))
    redis.call('HDEL', endpoint.limits, 'probe', 'probe_until')
    add_event(p, 'circuit_opened', endpoint.name)
    said[#said + 1] = 'circuit_opened'
  end
end

local function endpoint_is_slow(endpoint, pause, draw)
  local slow, share = 0, math.min(endpoint.share or terms.concurrency, terms.concurrency)
  if now - endpoint.cut >= 1000 then
    -- At most one cut a second: attempts that were under way at the cut report the same overload.
    redis.call('HSET', endpoint.limits, 'share', math.max(1, share / 2), 'cut', now)
    slow = endpoint.slow + 1
    redis.call('HSET', endpoint.limits, 'slow', slow)
  end
  -- After three cuts without an answer between them the endpoint pauses.
  if pause < 0 and slow >= 3 then
    pause = math.min(60000, 1000 * 2 ^ math.min(slow - 3, 10)) * draw
  end
  if pause >= 0 then
    -- A longer pause applies to this delivery only.
    local till = now + math.ceil(math.min(pause, terms.open_max))
    redis.call('HSET', endpoint.limits, 'pause', math.max(till, endpoint.pause))
  end
  redis.call('PEXPIRE', endpoint.limits, LIMITS_TTL_MS)
  forget_endpoint(endpoint.name)
end

-- Counts an endpoint's failures and disables it when it is gone or has failed for too long.
local function endpoint_says(endpoint, sign, id, said)
  if endpoint.disabled or sign == 'none' then
    return
  end
  local name = endpoint.name
  if sign == 'takes' then
    if endpoint.since or endpoint.refusals > 0 then
      redis.call('DEL', endpoint.health)
      redis.pcall('ZREM', p .. 'webhook-failing', name)
      forget_endpoint(name)
    end
    return
  end
  forget_endpoint(name)
  redis.call('HSETNX', endpoint.health, 'failing_since', now)
  local refusals = endpoint.refusals + 1
  -- A sealed URL can be opened only with the id of its delivery.
  local url = redis.call('HGET', p .. 'webhook:' .. id, 'url') or ''
  redis.call('HSET', endpoint.health, 'failures', refusals, 'name', url, 'named_by', id)
  redis.call('PEXPIRE', endpoint.health, ENDPOINT_TTL_MS)
  local after = terms.disable_after
  local failed_long = after > 0 and refusals >= 5 and now - (endpoint.since or now) >= after
  if sign == 'gone' or failed_long then
    disable(p, name, sign == 'gone' and 'gone' or 'failing', now)
    said[#said + 1] = 'endpoint_disabled'
  else
    redis.call('ZADD', p .. 'webhook-failing', now, name)
    thin(p, p .. 'webhook-failing', now)
  end
end
