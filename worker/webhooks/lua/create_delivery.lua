#!lua
-- create_delivery.lua: store a webhook delivery and its job, both or neither.
-- KEYS[1] delivery  KEYS[2] queue  KEYS[3] job body  KEYS[4] result  KEYS[5] wake token
--   and those of _delivery.lua, derived from the prefix
-- ARGV[1] prefix  ARGV[2] delivery id  ARGV[3] job id  ARGV[4] job body  ARGV[5] delay_ms >= 0
-- ARGV[6] endpoint  ARGV[7] host  ARGV[8] order, or ''  ARGV[9..] field, value, ... of the delivery
-- KEYS[6] a hash with the body, which is large and was sent before; or absent
-- returns 1 stored | 0 a delivery of this id exists already, nothing written
-- If the endpoint is closed or has parked deliveries, the new one is parked behind them: no worker runs
-- its job in vain.
-- no allow-oom: it adds a delivery and a job.
--@include types
--@include put_job
--@include put_value
--@include expect_staged
--@include delivery
local p, id, endpoint, order = ARGV[1], ARGV[2], ARGV[6], ARGV[8]
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
-- The delivery is written last, and must be: its job may run as soon as it is there.
--@rights to HSET
-- What is written before another write must be of its type; the first write checks itself.
expect('zset', KEYS[2])
if order ~= '' then
  expect('zset', p .. 'webhook-open', p .. 'webhook-order:' .. order)
end
-- The last key never exists (cache/connection/scripts.py).
local large = KEYS[7] and {KEYS[6]}
if large then
  --@rights of writes ZRANK
  expect_staged(large)
end
local now, closed = server_ms(), closed_until(p, endpoint)
local due = now + tonumber(ARGV[5])
local fields = {'state', 'pending', 'attempts', 0, 'created', now, 'job', ARGV[3], 'endpoint', endpoint, 'host', ARGV[7],
  unpack(ARGV, 9)}
local function add(field, value)
  fields[#fields + 1], fields[#fields + 2] = field, value
end
if due > now then
  add('after', due)
end
if order ~= '' then
  local line = p .. 'webhook-order:' .. order
  local last = redis.call('ZRANGE', line, -1, -1, 'WITHSCORES')[2]
  redis.call('ZADD', line, 'NX', math.max(number_of(last, 0) + 1, now), id)
  add('order', order)
  local rank = redis.call('ZRANK', line, id)
  if rank > 0 then
    -- The delivery before it wakes it at its end.
    due = math.max(due, now + look_ms(25 * rank))
  end
elseif due == now then
  if closed > now or redis.call('EXISTS', p .. 'webhook-parked:' .. endpoint) == 1 then
    expect('zset', p .. 'webhook-open', p .. 'webhook-parked:' .. endpoint)
    due = now + park(p, endpoint, id, now, closed - now)
    add('parked', now)
  end
end
add('next', due)
redis.call('ZADD', p .. 'webhook-open', now, id)
put_job(KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[3], ARGV[4], due)
if large then
  put_value(KEYS[1], large)
end
redis.call('HSET', KEYS[1], unpack(fields))
return 1
