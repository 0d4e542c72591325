-- Shared step: end deliveries. Needs put_job and delivery before it.
-- report: {head, tail} of the body of the job that reports an end; the delivery's id goes between them
-- Call index_ends after the last `finish`: the deliveries that one call ends enter their index together.

local function leave_order(p, order, id, now)
  local key = p .. 'webhook-order:' .. order
  redis.call('ZREM', key, id)
  local head = redis.call('ZRANGE', key, 0, 0)[1]
  if head then
    wake(p, head, now)
  end
end

-- Remove entries past their retention. The limit is above the number of deliveries that one call can
-- end, so the index does not grow.
local function trim(index, now, retention)
  local old = math.min(500, redis.call('ZCOUNT', index, '-inf', now - retention))
  if old > 0 then
    redis.call('ZREMRANGEBYRANK', index, 0, old - 1)
  end
  redis.call('PEXPIRE', index, retention)
end

-- state -> ids of the deliveries that this call has ended; the list exists once the types were checked
local ends = {}
local function index_ends(p, now, retention)
  for state, ids in pairs(ends) do
    if #ids > 0 then
      local index, rows = p .. 'webhook-ended:' .. state, {}
      for i, id in ipairs(ids) do
        rows[2 * i - 1], rows[2 * i] = now, id
      end
      redis.call('ZREM', p .. 'webhook-open', unpack(ids))
      redis.call('ZADD', index, unpack(rows))
      trim(index, now, retention)
    end
  end
end

-- Before anything of an end is written. state and d as for `finish`
local function expect_end(p, state, d)
  if not ends[state] then
    expect('zset', p .. 'webhook-open', p .. 'webhook-ended:' .. state)
    ends[state] = {}
  end
  if d.parked then
    expect('zset', p .. 'webhook-parked:' .. d.endpoint)
  end
  if d.order then
    expect('zset', p .. 'webhook-order:' .. d.order)
  end
  if d.on_end then
    expect('zset', p .. 'queue', p .. 'queue:wake')
  end
end

-- d: {order, endpoint, on_end, replays, parked}, each as in the delivery
local function finish(p, id, state, status, err, now, retention, d, report)
  local key = p .. 'webhook:' .. id
  if d.parked then
    redis.call('ZREM', p .. 'webhook-parked:' .. d.endpoint, id)
  end
  if d.order then
    leave_order(p, d.order, id, now)
  end
  if d.on_end then
    local job = 'webhook-end:' .. (d.replays or 0) .. ':' .. id
    local body = report[1] .. cmsgpack.pack(id) .. report[2]
    put_job(p .. 'queue', p .. 'job:' .. job, p .. 'result:' .. job, p .. 'queue:wake', job, body, now)
  end
  redis.call('PEXPIRE', p .. 'webhook-attempts:' .. id, retention)
  redis.call('PEXPIRE', key, retention)
  -- A right to a command may be taken away at any time. The state comes last: until then, the call that is
  -- sent again writes all of it.
  redis.call('HSET', key, 'state', state, 'status', status, 'error', err, 'ended', now)
  ends[state][#ends[state] + 1] = id
  if state == 'delivered' then
    -- Delivered: the secret is no longer needed. Other ends keep it, sealed, for a replay.
    redis.call('HDEL', key, 'next', 'parked', 'reserved', 'after', 'run', 'secret')
  else
    redis.call('HDEL', key, 'next', 'parked', 'reserved', 'after', 'run')
  end
end
