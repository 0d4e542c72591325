#!lua
-- gather_job.lua: enqueue the job that follows a gathering, and forget the gathering.
-- KEYS[1] schedules  KEYS[2] gathering  KEYS[3] queue  KEYS[4] job body  KEYS[5] result  KEYS[6] wake token
-- ARGV[1] member of the schedules  ARGV[2] job id  ARGV[3] key of the body, which was sent before
-- ARGV[4..] keys of its large parts
-- returns 1 enqueued | 0 another worker enqueued it, or a job with this id exists
-- no allow-oom: it adds a job.
--@rights
--@include types
--@include put_job
--@include expect_staged
expect('zset', KEYS[1], KEYS[3], KEYS[6])
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
  return 0
end
expect_staged({ARGV[3]})
local stored = put_job(KEYS[3], KEYS[4], KEYS[5], KEYS[6], ARGV[2], {ARGV[3]}, server_ms())
redis.call('UNLINK', KEYS[2], unpack(ARGV, 4))
redis.call('ZREM', KEYS[1], ARGV[1])
return stored
