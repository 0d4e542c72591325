-- Shared step: end deliveries. Needs types and delivery before it.
-- report: {head, tail} of the body of the job that reports an end; the delivery's id goes between them
-- Call index_ends after the last `finish`: the deliveries that one call ends enter their index together.

-- state -> ids of the deliveries that this call has ended; the list exists once rights and types were checked
local ends = {}

-- Also removes entries past their retention, unless a right to that lacks: then a later call does. The limit is
-- above the number of deliveries that one call can end, so the index does not grow.
local function index_ends(p, now, retention)
  for state, ids in pairs(ends) do
    if #ids > 0 then
      local index, rows = p .. 'webhook-ended:' .. state, {}
      for i, id in ipairs(ids) do
        rows[2 * i - 1], rows[2 * i] = now, id
      end
      redis.call('ZREM', p .. 'webhook-open', unpack(ids))
      redis.call('ZADD', index, unpack(rows))
      redis.call('PEXPIRE', index, retention)
      local old = redis.pcall('ZCOUNT', index, '-inf', now - retention)
      if type(old) == 'number' and old > 0 then
        redis.pcall('ZREMRANGEBYRANK', index, 0, math.min(500, old) - 1)
      end
    end
  end
end

-- Before anything of an end is written. state and d as for `finish`
local function expect_end(p, state, d)
  if not ends[state] then
    -- What is run after the state is written, when the end cannot be sent again.
    --@rights to HDEL ZADD ZREM
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

-- The next one in an ordering gets its turn.
local function leave_order(p, order, id, now)
  --@include wake
  local key = p .. 'webhook-order:' .. order
  redis.call('ZREM', key, id)
  local head = redis.call('ZRANGE', key, 0, 0)[1]
  if head then
    wake(p, head, now)
  end
end

local function report_end(p, id, replays, report, now)
  --@include put_job
  local job = 'webhook-end:' .. (replays or 0) .. ':' .. id
  local body = report[1] .. cmsgpack.pack(id) .. report[2]
  put_job(p .. 'queue', p .. 'job:' .. job, p .. 'result:' .. job, p .. 'queue:wake', job, body, now)
end

-- d: {order, endpoint, on_end, replays, parked}, each as in the delivery; more: further fields and values, or nil
local function finish(p, id, state, status, err, now, retention, d, report, more)
  local key = p .. 'webhook:' .. id
  if d.parked then
    redis.call('ZREM', p .. 'webhook-parked:' .. d.endpoint, id)
  end
  if d.order then
    leave_order(p, d.order, id, now)
  end
  if d.on_end then
    report_end(p, id, d.replays, report, now)
  end
  redis.call('PEXPIRE', p .. 'webhook-attempts:' .. id, retention)
  redis.call('PEXPIRE', key, retention)
  -- A right to a command may be taken away at any time. The state comes after all that is not checked by
  -- expect_end: until then, the call that is sent again writes all of it.
  redis.call('HSET', key, 'state', state, 'status', status, 'error', err, 'ended', now, unpack(more or {}))
  ends[state][#ends[state] + 1] = id
  -- Delivered: the secret is no longer needed. Other ends keep it, sealed, for a replay.
  redis.call('HDEL', key, 'next', 'parked', 'reserved', 'after', 'run', state == 'delivered' and 'secret' or 'run')
end
