-- Shared step: record how an attempt ended, and update the state of its target and endpoint.
-- Needs put_job, delivery, finish_delivery and shared_states before it.
-- An end: {id, attempt, state: delivered | waiting | dead, the attempt's record, wait_ms, status or '',
--   error or '', charged, host: alive | failing | none, slow down, pause_ms or -1,
--   endpoint: takes | refuses | gone | none, random in [0, 1)}

local function host_answers(name, target, slow_down, said)
  if target.failures > 0 or target.opens > 0 then
    redis.call('HDEL', target.key, 'failures', 'opens', 'open_until', 'probe', 'probe_until')
    forget_target(name)
    if target.opens > 0 then
      add_event(p, 'circuit_closed', 'target', name)
      said[#said + 1] = 'circuit_closed'
      promote(p, name, terms.concurrency)
    end
  end
  if target.share and not slow_down then
    -- Additive increase: the share grows by one for each `share` answers.
    local share = target.share + 1 / target.share
    redis.call('HDEL', target.key, 'slow')
    if share >= terms.concurrency then
      redis.call('HDEL', target.key, 'share')
    else
      redis.call('HSET', target.key, 'share', share)
    end
    forget_target(name)
  end
end

local function host_fails(name, target, draw, said)
  local failures = target.failures + 1
  redis.call('HSET', target.key, 'failures', failures)
  redis.call('PEXPIRE', target.key, TARGET_TTL_MS)
  forget_target(name)
  local is_open, limit = target.open_until > now, terms.breaker_failures
  if limit > 0 and not is_open and (target.opens > 0 or failures >= limit) then
    local opens = target.opens + 1
    redis.call('HSET', target.key, 'opens', opens)
    local length = math.min(terms.open_max, terms.open * 2 ^ math.min(opens - 1, 30))
    -- Random, so that breakers that opened together do not probe together.
    redis.call('HSET', target.key, 'open_until', now + math.ceil(length * (0.8 + 0.4 * draw)))
    redis.call('HDEL', target.key, 'probe', 'probe_until')
    add_event(p, 'circuit_opened', 'target', name)
    said[#said + 1] = 'circuit_opened'
  end
end

local function host_is_slow(name, target, pause, draw)
  local slow, share = 0, math.min(target.share or terms.concurrency, terms.concurrency)
  if now - target.cut >= 1000 then
    -- At most one cut a second: attempts that were under way at the cut report the same overload.
    redis.call('HSET', target.key, 'share', math.max(1, share / 2), 'cut', now)
    slow = target.slow + 1
    redis.call('HSET', target.key, 'slow', slow)
  end
  -- After three cuts without an answer between them the target pauses.
  if pause < 0 and slow >= 3 then
    pause = math.min(60000, 1000 * 2 ^ math.min(slow - 3, 10)) * draw
  end
  if pause >= 0 then
    -- A longer pause applies to this delivery only: the host may mean one of many tenants.
    local till = now + math.ceil(math.min(pause, terms.open_max))
    redis.call('HSET', target.key, 'pause', math.max(till, target.pause))
  end
  redis.call('PEXPIRE', target.key, TARGET_TTL_MS)
  forget_target(name)
end

-- Counts an endpoint's failures and disables it when it is gone or has failed for too long.
local function endpoint_says(name, sign, delivery_key, said)
  local endpoint = endpoint_of(name)
  if endpoint.disabled or sign == 'none' then
    return
  end
  if sign == 'takes' then
    if endpoint.since or endpoint.failures > 0 then
      redis.call('DEL', endpoint.key)
      redis.pcall('ZREM', p .. 'webhook-failing', name)
      forget_endpoint(name)
    end
    return
  end
  forget_endpoint(name)
  redis.call('HSETNX', endpoint.key, 'failing_since', now)
  local failures = endpoint.failures + 1
  redis.call('HSET', endpoint.key, 'failures', failures)
  redis.call('HSET', endpoint.key, 'name', redis.call('HGET', delivery_key, 'url') or '')
  redis.call('PEXPIRE', endpoint.key, ENDPOINT_TTL_MS)
  local after = terms.disable_after
  local failed_long = after > 0 and failures >= 5 and now - (endpoint.since or now) >= after
  if sign == 'gone' or failed_long then
    disable(p, name, sign == 'gone' and 'gone' or 'failing', now)
    said[#said + 1] = 'endpoint_disabled'
  else
    redis.call('ZADD', p .. 'webhook-failing', now, name)
    thin(p, p .. 'webhook-failing', now)
  end
end

-- freed: target -> slots that ends have freed
-- returns {0} another run has begun a later attempt or ended the delivery: nothing written
--       | {1, event, ...}: circuit_opened | circuit_closed | endpoint_disabled
local function record(e, freed)
  local id, state, host = e[1], e[3], e[9]
  local key = p .. 'webhook:' .. id
  local f = redis.call('HMGET', key, 'state', 'attempts', 'target', 'endpoint', 'order', 'on_end', 'replays', 'parked', 'internal_failures', 'uncharged')
  if f[1] ~= 'sending' or number_of(f[2]) ~= e[2] then
    return {0}
  end
  local name, said = f[3], {1}
  local target = target_of(name)
  local d = {target = name, order = f[5], on_end = f[6], replays = f[7], parked = f[8]}
  if state ~= 'waiting' then
    expect_end(p, state, d)
  end
  if e[12] ~= 'takes' and e[12] ~= 'none' then
    expect_endpoints(p)
  end
  endpoint_of(f[4])
  redis.call('LSET', p .. 'webhook-attempts:' .. id, -1, e[4])
  target.used = target.used - redis.call('ZREM', target.slots, id)
  freed[name] = (freed[name] or 0) + 1
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
  if host == 'alive' then
    host_answers(name, target, e[10], said)
  elseif host == 'failing' then
    host_fails(name, target, e[13], said)
  elseif target.probe == id then
    redis.call('HDEL', target.key, 'probe', 'probe_until')
    forget_target(name)
  end
  if e[10] then
    host_is_slow(name, target_of(name), e[11], e[13])
  end
  endpoint_says(f[4], e[12], key, said)
  return said
end
