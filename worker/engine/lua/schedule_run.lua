#!lua
-- schedule_run.lua: enqueue one run of a repeating job and set its next run. Compare-and-set.
-- KEYS[1] schedules  KEYS[2] queue  KEYS[3] job body  KEYS[4] result  KEYS[5] wake token
-- ARGV[1] schedule id  ARGV[2] the run that is due, Unix ms  ARGV[3] the next run, Unix ms
-- ARGV[4] job id  ARGV[5] body
-- returns 1 enqueued | 0 another worker enqueued it, or the schedule was changed or removed
-- no allow-oom: it adds a job.
--@include types
--@include put_job
expect('zset', KEYS[1], KEYS[2], KEYS[5])
if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return put_job(KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[4], ARGV[5], server_ms())
