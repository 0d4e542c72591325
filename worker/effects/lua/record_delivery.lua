-- record_delivery.lua: write down how an attempt ended; compare-and-set on the attempt's number.
-- KEYS[1] delivery  KEYS[2] attempts
-- ARGV[1] attempt  ARGV[2] state: delivered | waiting | dead  ARGV[3] the attempt's record
-- ARGV[4] wait_ms until the next (waiting)  ARGV[5] retention_ms (delivered, dead)
-- ARGV[6] status, or ''  ARGV[7] error, or ''
-- returns 1 recorded | 0 another run has begun a later attempt, or ended it: nothing written
if redis.call('HGET', KEYS[1], 'state') ~= 'sending' then
  return 0
end
if redis.call('HGET', KEYS[1], 'attempts') ~= ARGV[1] then
  return 0
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('LSET', KEYS[2], -1, ARGV[3])
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'status', ARGV[6], 'error', ARGV[7])
if ARGV[2] == 'waiting' then
  redis.call('HSET', KEYS[1], 'next', now + tonumber(ARGV[4]))
else
  redis.call('HSET', KEYS[1], 'ended', now)
  -- A signing secret is of no more use; a body is kept for a replay.
  redis.call('HDEL', KEYS[1], 'secret')
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
end
return 1
