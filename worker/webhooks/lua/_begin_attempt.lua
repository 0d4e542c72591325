-- Shared step: begin one attempt of a delivery and count it, if its target has a free slot.
-- Needs put_job, delivery, finish_delivery and shared_states before it.
-- A begin: {id, the new attempt's record, token of the run}

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

-- returns why a target accepts no attempt now, and ms to wait | nil when it accepts one
local function refusal(target, id, state, reserved)
  if target.closed > now then
    return 'closed', target.closed - now
  end
  if target.opens > 0 and target.probe and target.probe ~= id and target.probe_until > now then
    return 'probing', 0
  end
  local room = math.min(terms.concurrency, math.max(1, math.floor(target.share or math.huge)))
  -- A delivery whose worker died still has its slot.
  if target.used >= room and not (state == 'sending' and redis.call('ZSCORE', target.slots, id)) then
    return 'busy', 0
  end
  if terms.rate > 0 and not (reserved and reserved <= now and now - reserved < 10000) then
    local at = math.max(now, target.next_at)
    target.next_at = at + 1000 / terms.rate
    redis.call('HSET', target.key, 'next_at', target.next_at)
    redis.call('PEXPIRE', target.key, TARGET_TTL_MS)
    if at > now then
      return 'rate', at - now
    end
  end
end

local function take_place(target, id)
  if target.opens > 0 then
    target.probe, target.probe_until = id, now + terms.slot
    redis.call('HSET', target.key, 'probe', id, 'probe_until', target.probe_until)
  end
  target.used = target.used + redis.call('ZADD', target.slots, now + terms.slot, id)
  if not target.kept then
    -- The key must not expire before another worker's slots, whose limits may be longer.
    target.kept = true
    redis.call('PEXPIRE', target.slots, terms.slot, 'NX')
    redis.call('PEXPIRE', target.slots, terms.slot, 'GT')
  end
end

-- returns {'skip'} no such delivery, or it has ended
--       | {'end', state, reason} ended without this attempt
--       | {'wait', ms, reason} throttled; nothing was counted
--       | {'go', attempt >= 1, now, url, event type, body, headers, secret, deadline, uncharged, internal_failures}
local function begin(b)
  local id, run = b[1], b[3]
  local key = p .. 'webhook:' .. id
  local f = redis.call('HMGET', key, 'state', 'target', 'endpoint', 'order', 'deadline', 'reserved', 'parked', 'on_end',
    'replays', 'attempts', 'uncharged', 'after', 'run')
  local state, name, attempt = f[1], f[2], number_of(f[10], 0)
  if not state or ENDED[state] then
    return {'skip'}
  end
  local function go()
    return {'go', attempt, now,
      unpack(redis.call('HMGET', key, 'url', 'event_type', 'body', 'headers', 'secret', 'deadline', 'uncharged', 'internal_failures'))}
  end
  if state == 'sending' and f[13] == run then
    -- The same call, sent again after its reply was lost.
    return go()
  end
  local deadline, target = number_of(f[5]), target_of(name)
  expect('list', p .. 'webhook-attempts:' .. id)

  local function give_place_back()
    if state == 'sending' then
      target.used = target.used - redis.call('ZREM', target.slots, id)
    end
  end
  local function over(how, reason)
    local d = {target = name, order = f[4], on_end = f[8], replays = f[9], parked = f[7]}
    expect_end(p, how, d)
    give_place_back()
    finish(p, id, how, '', reason, now, terms.retention, d, terms.report)
    return {'end', how, reason}
  end
  local function hold(wait, reason)
    wait = math.ceil(math.max(1, math.min(wait, deadline and deadline - now or math.huge)))
    give_place_back()
    if state == 'sending' then
      redis.call('HSET', key, 'state', 'waiting', 'next', now + wait)
    else
      redis.call('HSET', key, 'next', now + wait)
    end
    return {'wait', wait, reason}
  end

  if deadline and now >= deadline then
    return over('dead', 'deadline')
  end
  if attempt - number_of(f[11], 0) >= terms.max_attempts then
    return over('dead', 'attempts_used_up')
  end
  if endpoint_of(f[3]).disabled then
    return over('disabled', 'endpoint_disabled')
  end
  if number_of(f[12], 0) > now then
    -- Its last run died between the record and its own end.
    return hold(number_of(f[12]) - now, 'early')
  end
  if f[4] then
    local first, rank = is_first(f[4], id)
    if not first then
      return hold(look_ms(25 * rank), 'ordered')
    end
  end
  if f[7] then
    expect('zset', p .. 'webhook-parked:' .. name)
  end
  local reason, wait = refusal(target, id, state, number_of(f[6]))
  if reason == 'rate' then
    redis.call('HSET', key, 'reserved', math.floor(now + wait))
    return hold(wait, reason)
  elseif reason then
    expect('zset', p .. 'webhook-parked:' .. name)
    local since = number_of(f[7], now)
    redis.call('HSET', key, 'parked', since)
    return hold(park(p, name, id, since, wait), reason)
  end

  take_place(target, id)
  if f[7] then
    redis.call('ZREM', p .. 'webhook-parked:' .. name, id)
  end
  attempt = attempt + 1
  redis.call('HDEL', key, 'next', 'parked', 'reserved', 'after')
  redis.call('HSET', key, 'state', 'sending', 'attempts', attempt, 'run', run)
  redis.call('RPUSH', p .. 'webhook-attempts:' .. id, b[2])
  if attempt > terms.most_records then
    redis.call('LTRIM', p .. 'webhook-attempts:' .. id, -terms.most_records, -1)
  end
  return go()
end
