#!lua
-- rescue_llm.lua: enqueue a new job for a request or batch that has not ended and has no job.
-- KEYS[1] request or batch  KEYS[2] index of those under way, by the time of the last check
-- KEYS[3] queue  KEYS[4] job body  KEYS[5] job result  KEYS[6] wake token
-- KEYS[7] dead letters  KEYS[8] dead letter  KEYS[9] job's tries
-- ARGV[1] its id  ARGV[2] job id  ARGV[3] job body  ARGV[4] most jobs that may be lost, 0: no limit
-- returns 0 it has a job, or has ended | 1 a new job is enqueued | -1 it lost too many
-- no allow-oom: it adds a job.
--@rights
--@include types
--@include put_job
expect('zset', KEYS[2], KEYS[3], KEYS[6], KEYS[7])
if redis.call('EXISTS', KEYS[1]) == 0 or not fits('hash', KEYS[1]) then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return 0
end
redis.call('ZADD', KEYS[2], 'XX', server_ms(), ARGV[1])
if redis.call('EXISTS', KEYS[4]) == 1 then
  return 0
end
local most, lost = tonumber(ARGV[4]), number_of(redis.call('HGET', KEYS[1], 'lost'), 0) + 1
redis.call('HSET', KEYS[1], 'lost', lost)
if lost > most and most > 0 then
  return -1
end
redis.call('DEL', KEYS[8], KEYS[9])
redis.call('ZREM', KEYS[7], ARGV[2])
put_job(KEYS[3], KEYS[4], KEYS[5], KEYS[6], ARGV[2], ARGV[3], server_ms())
return 1
