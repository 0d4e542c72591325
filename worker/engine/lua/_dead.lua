-- Shared step: keep a job that ended badly, whole, and make room for it.
-- d: {set, prefix, cap, age (ms), now, queues, dropped}; why: {reason, error, queue (its number), tries}
-- The caller deletes the live job, and has checked d.set's type. Needs types and body before it. d.dropped counts those that went to make room.
local function bury(d, id, why)
  local key = d.prefix .. 'dead:' .. id
  local body = body_of(d.prefix .. 'job:' .. id)
  redis.call('DEL', key)
  redis.call('HSET', key, 'body', type(body) == 'string' and body or '', 'reason', why.reason, 'error', why.error or '',
    'queue', why.queue, 'queue_name', d.queues[why.queue], 'tries', why.tries or 0, 'died', d.now, 'name', why.name or '')
  redis.call('PEXPIRE', key, d.age)
  redis.call('ZADD', d.set, d.now, id)
  redis.call('ZREMRANGEBYSCORE', d.set, '-inf', d.now - d.age)
  local over = math.min(1000, redis.call('ZCARD', d.set) - d.cap)
  if over > 0 then
    d.dropped = d.dropped + over
    for _, old in ipairs(redis.call('ZRANGE', d.set, 0, over - 1)) do
      redis.call('DEL', d.prefix .. 'dead:' .. old)
      redis.call('ZREM', d.set, old)
    end
  end
end
