#!lua
-- replay_delivery.lua: make an ended delivery pending again, under the same id, with a new job.
-- KEYS[1] delivery  KEYS[2] attempts  KEYS[3] queue  KEYS[4] job body  KEYS[5] result  KEYS[6] wake token
--   and those of _delivery.lua
-- ARGV[1] prefix  ARGV[2] delivery id  ARGV[3] token of this replay, never used before
-- ARGV[4] job id  ARGV[5] job body  ARGV[6] delay_ms  ARGV[7] deadline_ms from now
-- ARGV[8] sealed secrets, or '' to keep the stored ones
-- returns replayed | unknown | open | endpoint_disabled | secret_needed
-- Its attempts stay in the list; the policy counts from one again.
-- The token makes the call safe to send again.
-- no allow-oom: it adds a job.
--@rights
--@include types
--@include put_job
--@include delivery
local p, id = ARGV[1], ARGV[2]
local f = redis.call('HMGET', KEYS[1], 'state', 'replay', 'endpoint', 'attempts', 'sealed', 'secret', 'replays')
local state = f[1]
if not state then
  return 'unknown'
end
if f[2] == ARGV[3] then
  return 'replayed'
end
if not ENDED[state] then
  return 'open'
end
if redis.call('HEXISTS', p .. 'webhook-endpoint:' .. f[3], 'disabled') == 1 then
  return 'endpoint_disabled'
end
if f[5] and not f[6] and ARGV[8] == '' then
  return 'secret_needed'
end
expect('zset', p .. 'webhook-ended:' .. state, p .. 'webhook-open', KEYS[3], KEYS[6])
local now = server_ms()
local due = now + tonumber(ARGV[6])
redis.call('HSET', KEYS[1], 'state', 'pending', 'next', due, 'after', due, 'job', ARGV[4], 'replay', ARGV[3],
  'uncharged', number_of(f[4], 0), 'deadline', due + tonumber(ARGV[7]))
if ARGV[8] ~= '' then
  redis.call('HSET', KEYS[1], 'secret', ARGV[8], 'sealed', 1)
end
redis.call('HSET', KEYS[1], 'replays', number_of(f[7], 0) + 1)
-- Its turn in an ordering has passed.
redis.call('HDEL', KEYS[1], 'ended', 'internal_failures', 'order')
redis.call('PERSIST', KEYS[1])
redis.call('PERSIST', KEYS[2])
redis.call('ZREM', p .. 'webhook-ended:' .. state, id)
redis.call('ZADD', p .. 'webhook-open', now, id)
put_job(KEYS[3], KEYS[4], KEYS[5], KEYS[6], ARGV[4], ARGV[5], due)
return 'replayed'
