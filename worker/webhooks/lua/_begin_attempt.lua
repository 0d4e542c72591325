-- Shared step: begin one attempt of a delivery and count it, if its endpoint and host have a free slot.
-- Needs put_job, delivery, finish_delivery, shared_states, serve_host and count_attempts before it.
-- A begin: {id, the new attempt's record, token of the run}

-- Bytes of bodies that this call may still return. A delivery has a field `size` if its body is not small.
local inline_left = 524288

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

-- returns why no attempt is accepted now, and ms to wait | nil when it is accepted
local function refusal(endpoint, host, d)
  if not d.forced then
    if endpoint.closed > now then
      return 'closed', endpoint.closed - now
    end
    if endpoint.opens > 0 and endpoint.probe and endpoint.probe ~= d.id and endpoint.probe_until > now then
      return 'probing', 0
    end
  end
  -- A delivery whose worker died still has its slot.
  if not (d.state == 'sending' and redis.call('ZSCORE', endpoint.slots, d.id)) then
    local most = math.min(terms.concurrency, math.max(1, math.floor(endpoint.share or math.huge)))
    if endpoint.used >= most then
      return 'busy', 0
    end
    if not host_has_room(host, endpoint) then
      return 'host_busy', 0
    end
  end
  if terms.rate > 0 and not d.forced and not (d.reserved and d.reserved <= now and now - d.reserved < 10000) then
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

-- returns {'skip'} no such delivery, or it has ended
--       | {'end', state, reason} ended without this attempt
--       | {'wait', ms, reason} throttled; nothing was counted
--       | {'go', attempt >= 1, now, ms since it was due, url, event type, body | -1: a plain HGET reads it, headers, secret, deadline, uncharged, internal_failures}
local function begin(b)
  local id, run = b[1], b[3]
  local key = p .. 'webhook:' .. id
  local f = redis.call('HMGET', key, 'state', 'endpoint', 'host', 'order', 'deadline', 'reserved', 'parked', 'on_end',
    'replays', 'attempts', 'uncharged', 'after', 'run', 'forced', 'size', 'created')
  local state, name, attempt = f[1], f[2], number_of(f[10], 0)
  if not state or ENDED[state] then
    return {'skip'}
  end
  local function go()
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
  if state == 'sending' and f[13] == run then
    -- The same call, sent again after its reply was lost.
    return go()
  end
  local deadline, endpoint, host = number_of(f[5]), endpoint_of(name), host_of(f[3] or '')
  local attempts = p .. 'webhook-attempts:' .. id
  if f[4] or terms.rate > 0 then
    -- These write before it is known whether the attempt begins; otherwise RPUSH is the first to write.
    expect('list', attempts)
  end

  local interrupted = state == 'sending'
  local function give_place_back()
    if interrupted then
      give_slot_back(host, endpoint, id)
    end
  end
  local function over(how, reason)
    local d = {endpoint = name, order = f[4], on_end = f[8], replays = f[9], parked = f[7]}
    expect_end(p, how, d)
    give_place_back()
    finish(p, id, how, '', reason, now, terms.retention, d, terms.report)
    count_attempt(name, how, interrupted)
    return {'end', how, reason}
  end
  local function hold(wait, reason)
    wait = math.ceil(math.max(1, math.min(wait, deadline and deadline - now or math.huge)))
    give_place_back()
    if interrupted then
      redis.call('HSET', key, 'state', 'waiting', 'next', now + wait)
      count_attempt(name, '', true)
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
  if endpoint.disabled then
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
  local reason, wait = refusal(endpoint, host, {id = id, state = state, reserved = number_of(f[6]), forced = f[14]})
  if reason == 'rate' then
    redis.call('HSET', key, 'reserved', math.floor(now + wait))
    return hold(wait, reason)
  elseif reason then
    expect('zset', p .. 'webhook-parked:' .. name)
    local since = number_of(f[7], now)
    redis.call('HSET', key, 'parked', since)
    if reason == 'host_busy' then
      join_line(host, endpoint)
    end
    return hold(park(p, name, id, since, wait), reason)
  end

  redis.call('RPUSH', attempts, b[2])
  take_place(endpoint, host, id)
  if f[7] then
    redis.call('ZREM', p .. 'webhook-parked:' .. name, id)
  end
  attempt = attempt + 1
  redis.call('HDEL', key, 'next', 'parked', 'reserved', 'forced')
  redis.call('HSET', key, 'state', 'sending', 'attempts', attempt, 'run', run)
  if attempt > terms.most_records then
    redis.call('LTRIM', attempts, -terms.most_records, -1)
  end
  if interrupted then
    count_attempt(name, '', true)
  end
  return go()
end
