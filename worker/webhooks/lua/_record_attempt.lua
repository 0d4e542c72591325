-- Shared step: record how an attempt ended, and update the state of its endpoint.
-- Needs put_job, delivery, finish_delivery, shared_states and count_attempts before it.
-- An end: {id, attempt, state: delivered | waiting | dead, the attempt's record, wait_ms, status or '',
--   error or '', charged, breaker: alive | failing | none, slow down, pause_ms or -1,
--   endpoint: takes | refuses | gone | none, random in [0, 1), and of the history (_count_attempts.lua): bucket of
--   the attempt's time | -1, bucket of its wait, us of each}

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

-- freed: as for `serve`
-- returns {0} another run has begun a later attempt or ended the delivery: nothing written
--       | {1, event, ...}: circuit_opened | circuit_closed | endpoint_disabled
local function record(e, freed)
  local id, state, sign = e[1], e[3], e[9]
  local key = p .. 'webhook:' .. id
  local f = redis.call('HMGET', key, 'state', 'attempts', 'endpoint', 'host', 'order', 'on_end', 'replays', 'parked', 'internal_failures',
    'uncharged')
  if f[1] ~= 'sending' or number_of(f[2]) ~= e[2] then
    return {0}
  end
  local name, said = f[3], {1}
  local endpoint, host = endpoint_of(name), host_of(f[4] or '')
  local d = {endpoint = name, order = f[5], on_end = f[6], replays = f[7], parked = f[8]}
  if state ~= 'waiting' then
    expect_end(p, state, d)
  end
  if e[12] ~= 'takes' and e[12] ~= 'none' then
    expect_endpoints(p)
  end
  redis.call('LSET', p .. 'webhook-attempts:' .. id, -1, e[4])
  give_slot_back(host, endpoint, id)
  freed[name] = {host.name, (freed[name] or {0, 0})[2] + 1}
  if not e[8] then
    redis.call('HSET', key, 'uncharged', number_of(f[10], 0) + 1, 'internal_failures', number_of(f[9], 0) + 1)
  elseif f[9] then
    redis.call('HDEL', key, 'internal_failures')
  end
  if state == 'waiting' then
    local due = now + e[5]
    -- No wake makes it due before `after`.
    redis.call('HSET', key, 'state', state, 'status', e[6], 'error', e[7], 'next', due, 'after', due)
  else
    finish(p, id, state, e[6], e[7], now, terms.retention, d, terms.report)
  end
  count_attempt(name, state, false, e[14], e[15], e[16], e[17])
  if endpoint.probe == id then
    redis.call('HDEL', endpoint.limits, 'probe', 'probe_until')
    forget_endpoint(name)
  end
  if sign == 'alive' then
    endpoint_answers(endpoint, e[10], said)
  elseif sign == 'failing' then
    endpoint_fails(endpoint, e[13], said)
  end
  if e[10] then
    endpoint_is_slow(endpoint_of(name), e[11], e[13])
  end
  endpoint_says(endpoint_of(name), e[12], id, said)
  return said
end
