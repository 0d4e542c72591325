-- Shared step: begin one attempt of a delivery and count it, if its endpoint and host have a free slot.
-- Needs delivery, finish_delivery, shared_states and count_attempts before it.
-- A begin: {id, the new attempt's record, token of the run}

-- Bytes of bodies that this call may still return. A delivery has a field `size` if its body is not small.
local inline_left = 524288
-- Whether the user's rights were asked for: once in a call.
local may_begin = false

-- returns why no attempt is accepted now, and ms to wait | nil when it is accepted
local function refusal(endpoint, host, id, sending, reserved, forced)
  if not forced then
    if endpoint.closed > now then
      return 'closed', endpoint.closed - now
    end
    if endpoint.opens > 0 and endpoint.probe and endpoint.probe ~= id and endpoint.probe_until > now then
      return 'probing', 0
    end
  end
  -- A delivery whose worker died still has its slot.
  if not (sending and redis.call('ZSCORE', endpoint.slots, id)) then
    local most = math.min(terms.concurrency, math.max(1, math.floor(endpoint.share or math.huge)))
    if endpoint.used >= most then
      return 'busy', 0
    end
    if not host_has_room(host, endpoint) then
      return 'host_busy', 0
    end
  end
  if terms.rate > 0 and not forced and not (reserved and reserved <= now and now - reserved < 10000) then
    local at = math.max(now, endpoint.next_at)
    endpoint.next_at = at + 1000 / terms.rate
    redis.call('HSET', endpoint.limits, 'next_at', endpoint.next_at)
    redis.call('PEXPIRE', endpoint.limits, LIMITS_TTL_MS)
    if at > now then
      return 'rate', at - now
    end
  end
end

-- Slots of one kind; each key must not expire before another worker's slots, whose limits may be longer.
local function take_slot(kind, id)
  kind.used = kind.used + redis.call('ZADD', kind.slots, now + terms.slot, id)
  if not kind.kept then
    kind.kept = true
    redis.call('PEXPIRE', kind.slots, terms.slot, 'NX')
    redis.call('PEXPIRE', kind.slots, terms.slot, 'GT')
  end
end

local function take_place(endpoint, host, id)
  if endpoint.opens > 0 then
    endpoint.probe, endpoint.probe_until = id, now + terms.slot
    redis.call('HSET', endpoint.limits, 'probe', id, 'probe_until', endpoint.probe_until)
  end
  take_slot(endpoint, id)
  take_slot(host, id)
end

-- The reply to a begin that is accepted. It reads all of it before the first write.
local function contents_of(key, f, attempt)
  local size = number_of(f[15], 0)
  local apart = size > inline_left
  local row = redis.call('HMGET', key, 'url', 'event_type', apart and '' or 'body', 'headers', 'secret', 'deadline',
    'uncharged', 'internal_failures')
  if apart then
    row[3] = -1
  else
    inline_left = inline_left - size
  end
  local due = number_of(f[12]) or number_of(f[16], now)
  return {'go', attempt, now, math.max(0, math.floor(now - due)), unpack(row)}
end

-- End a delivery instead of an attempt.
local function over(d, endpoint, host, how, reason)
  expect_end(p, how, d)
  if d.interrupted then
    give_slot_back(host, endpoint, d.id)
  end
  finish(p, d.id, how, '', reason, now, terms.retention, d, terms.report)
  count_attempt(endpoint.name, how, d.interrupted)
  return {'end', how, reason}
end

-- Throttle a delivery. returns {'wait', ms, reason}
local function hold(d, endpoint, host, wait, reason)
  wait = math.ceil(math.max(1, math.min(wait, d.deadline and d.deadline - now or math.huge)))
  if d.interrupted then
    give_slot_back(host, endpoint, d.id)
    redis.call('HSET', d.key, 'state', 'waiting', 'next', now + wait)
    count_attempt(endpoint.name, '', true)
  else
    redis.call('HSET', d.key, 'next', now + wait)
  end
  return {'wait', wait, reason}
end

-- returns the reply to a delivery that must not begin, whatever its endpoint's limits | nil
local function hindrance(d, endpoint, host, is_used_up)
  if d.deadline and now >= d.deadline then
    return over(d, endpoint, host, 'dead', 'deadline')
  elseif is_used_up then
    return over(d, endpoint, host, 'dead', 'attempts_used_up')
  elseif endpoint.disabled then
    return over(d, endpoint, host, 'disabled', 'endpoint_disabled')
  elseif d.after > now then
    -- Its last run died between the record and its own end.
    return hold(d, endpoint, host, d.after - now, 'early')
  elseif d.order then
    --@include first_in_order
    local first, rank = is_first(d.order, d.id)
    if not first then
      return hold(d, endpoint, host, look_ms(25 * rank), 'ordered')
    end
  end
end

-- Throttle a delivery that its endpoint's limits refuse.
local function wait_for_room(d, endpoint, host, reason, wait)
  if reason == 'rate' then
    redis.call('HSET', d.key, 'reserved', math.floor(now + wait))
    return hold(d, endpoint, host, wait, reason)
  end
  expect('zset', p .. 'webhook-parked:' .. endpoint.name)
  local since = number_of(d.parked, now)
  redis.call('HSET', d.key, 'parked', since)
  if reason == 'host_busy' then
    --@include join_line
    join_line(host, endpoint)
  end
  return hold(d, endpoint, host, park(p, endpoint.name, d.id, since, wait), reason)
end

-- returns {'skip'} no such delivery, or it has ended
--       | {'end', state, reason} ended without this attempt
--       | {'wait', ms, reason} throttled; nothing was counted
--       | {'go', attempt >= 1, now, ms since it was due, url, event type, body | -1: a plain HGET reads it, headers, secret, deadline, uncharged, internal_failures}
local function begin(b)
  local id, run = b[1], b[3]
  local key, attempts = p .. 'webhook:' .. id, p .. 'webhook-attempts:' .. id
  local f = redis.call('HMGET', key, 'state', 'endpoint', 'host', 'order', 'deadline', 'reserved', 'parked', 'on_end',
    'replays', 'attempts', 'uncharged', 'after', 'run', 'forced', 'size', 'created')
  local state, attempt = f[1], number_of(f[10], 0)
  if not state or ENDED[state] then
    return {'skip'}
  end
  local interrupted = state == 'sending'
  if interrupted and f[13] == run then
    -- The same call, sent again after its reply was lost.
    return contents_of(key, f, attempt)
  end
  local name, deadline, after = f[2], number_of(f[5]), number_of(f[12], 0)
  local endpoint, host = endpoint_of(name), host_of(f[3] or '')
  expect('list', attempts)
  local function delivery()
    return {id = id, key = key, endpoint = name, order = f[4], on_end = f[8], replays = f[9], parked = f[7],
      deadline = deadline, after = after, interrupted = interrupted}
  end
  local is_used_up = attempt - number_of(f[11], 0) >= terms.max_attempts
  if deadline and now >= deadline or is_used_up or endpoint.disabled or after > now or f[4] then
    local reply = hindrance(delivery(), endpoint, host, is_used_up)
    if reply then
      return reply
    end
  end
  if f[7] then
    expect('zset', p .. 'webhook-parked:' .. name)
  end
  -- A begin that is sent again must not use up another turn of the rate, nor add another record: what is
  -- written before the record may be written twice, and what is written after it must be allowed.
  if not may_begin then
    if terms.rate > 0 then
      --@rights to HDEL HSET LTRIM PEXPIRE RPUSH ZADD ZREM
    else
      --@rights to HSET
    end
    may_begin = true
  end
  local reason, wait = refusal(endpoint, host, id, interrupted, number_of(f[6]), f[14])
  if reason then
    return wait_for_room(delivery(), endpoint, host, reason, wait)
  end

  attempt = attempt + 1
  local reply = contents_of(key, f, attempt)
  if attempt > terms.most_records then
    redis.call('LTRIM', attempts, 1 - terms.most_records, -1)
  end
  take_place(endpoint, host, id)
  if f[7] then
    redis.call('ZREM', p .. 'webhook-parked:' .. name, id)
  end
  redis.call('HDEL', key, 'next', 'parked', 'reserved', 'forced')
  redis.call('RPUSH', attempts, b[2])
  redis.call('HSET', key, 'state', 'sending', 'attempts', attempt, 'run', run)
  if interrupted then
    count_attempt(name, '', true)
  end
  return reply
end
