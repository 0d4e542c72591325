#!lua
-- hasten_batch.lua: make a batch's job due now; enqueue it if it is missing.
-- KEYS[1] queue  KEYS[2] job body  KEYS[3] job result  KEYS[4] wake token  KEYS[5] job's in-progress key
-- ARGV[1] job id  ARGV[2] job body
-- returns 1 due now | 0 it is running
-- no allow-oom: it may add a job.
--@rights
--@include types
--@include put_job
expect('zset', KEYS[1], KEYS[4])
if redis.call('EXISTS', KEYS[5]) == 1 then
  return 0
end
local now = server_ms()
if put_job(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1], ARGV[2], now) == 0 then
  redis.call('ZADD', KEYS[1], 'XX', 'LT', now, ARGV[1])
  redis.call('ZADD', KEYS[4], 0, 'w')
end
return 1
