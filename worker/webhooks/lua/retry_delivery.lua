#!lua flags=allow-oom
-- retry_delivery.lua: make a waiting delivery's next attempt due now, whatever it waits for.
-- KEYS[1] delivery; and those of _delivery.lua, derived from the prefix
-- ARGV[1] prefix
-- returns due | unknown | ended | sending: an attempt is under way | running: its job is about to end
--       | jobless: its job is in no queue
-- `forced` passes it by an open breaker, a pause and a rate once; slots, order and deadline still hold.
-- allow-oom: it adds nothing but two numbers, and a delivery that ends makes room.
--@rights
--@include types
--@include put_job
--@include delivery
--@include wake
local p = ARGV[1]
local f = redis.call('HMGET', KEYS[1], 'state', 'job')
local state, job = f[1], f[2]
if not state then
  return 'unknown'
elseif ENDED[state] then
  return 'ended'
elseif state == 'sending' then
  return 'sending'
elseif not job or redis.call('EXISTS', p .. 'job:' .. job) == 0 then
  return 'jobless'
elseif redis.call('EXISTS', p .. 'in-progress:' .. job) == 1 then
  return 'running'
end
local queue
for _, name in ipairs(QUEUES) do
  if type(redis.pcall('ZSCORE', p .. name, job)) == 'string' then
    queue = p .. name
  end
end
if not queue then
  return 'jobless'
end
expect('zset', p .. 'queue:wake')
local now = server_ms()
redis.call('HSET', KEYS[1], 'next', now, 'after', now, 'forced', 1)
redis.call('ZADD', queue, 'XX', now, job)
redis.call('ZADD', p .. 'queue:wake', 0, 'w')
return 'due'
