-- Shared step: store a failed job as a dead letter, and delete old dead letters beyond the limits.
-- d: {set, prefix, cap, age (ms), now, queues, dropped}; why: {reason, error, queue number, tries, name}
-- The caller has checked the type of d.set, and deletes the live job. d.dropped counts the deleted
-- dead letters. A large body moves to dead-body:<id>. Needs types and body before it.
-- dead-queues, from which stats.lua counts, may be of a wrong type: it never holds up a burial.
local function bury(d, id, why)
  local key, large = d.prefix .. 'dead:' .. id, d.prefix .. 'dead-body:' .. id
  local body = body_of(d.prefix .. 'job:' .. id)
  if body == -3 then
    redis.call('RENAME', d.prefix .. 'job:' .. id, large)
  elseif body then
    -- Without a body, this burial may be the second try of one that stopped halfway.
    redis.call('UNLINK', large)
  end
  redis.call('PEXPIRE', large, d.age)
  redis.call('UNLINK', key)
  -- Only arq's own clients choose another queue than the prefix's.
  local foreign = d.queues[3] ~= d.prefix .. 'queue'
  redis.call('HSET', key, 'body', type(body) == 'string' and body or '', 'reason', why.reason, 'error', why.error or '',
    'queue', why.queue, 'queue_name', foreign and d.queues[why.queue] or '', 'tries', why.tries or 0, 'died', d.now, 'name', why.name or '')
  redis.call('PEXPIRE', key, d.age)
  redis.call('ZADD', d.set, d.now, id)
  local index = d.prefix .. 'dead-queues'
  allowed(redis.pcall('ZADD', index, why.queue, id))
  -- Each burial makes room for itself; one script removes at most about 100 more.
  d.room = d.room or 100
  local old = math.min(d.room, redis.call('ZCOUNT', d.set, '-inf', d.now - d.age))
  if old > 0 then
    -- Their own keys have expired.
    allowed(redis.pcall('ZREM', index, unpack(redis.call('ZRANGE', d.set, 0, old - 1))))
    redis.call('ZREMRANGEBYRANK', d.set, 0, old - 1)
    d.room = d.room - old
  end
  local size = redis.call('ZCARD', d.set)
  local indexed = allowed(redis.pcall('ZCARD', index))
  if type(indexed) == 'number' and indexed > size then
    -- Clients of an earlier release have removed dead letters from the set alone.
    redis.call('UNLINK', index)
  end
  local over = math.min(math.max(1, d.room), size - d.cap)
  if over > 0 then
    d.dropped, d.room = d.dropped + over, d.room - over
    local oldest = redis.call('ZRANGE', d.set, 0, over - 1)
    for _, one in ipairs(oldest) do
      redis.call('UNLINK', d.prefix .. 'dead:' .. one, d.prefix .. 'dead-body:' .. one)
    end
    allowed(redis.pcall('ZREM', index, unpack(oldest)))
    redis.call('ZREMRANGEBYRANK', d.set, 0, over - 1)
  end
end
