#!lua
-- schedule_run.lua: enqueue one run of a repeating job and set its next run. Compare-and-set.
-- KEYS[1] schedules  KEYS[2] queue  KEYS[3] job body  KEYS[4] result  KEYS[5] wake token  KEYS[6] last runs
-- KEYS[7] paused; and the body of the last run's job
-- ARGV[1] schedule id  ARGV[2] the run that is due, Unix ms  ARGV[3] the next run, Unix ms
-- ARGV[4] job id, with the run in it  ARGV[5] body  ARGV[6] function  ARGV[7] priority
-- returns 1 enqueued | 0 another worker enqueued it, the schedule was changed or removed, or it is paused
--   and an earlier run waits
-- no allow-oom: it adds a job.
--@rights
--@include types
--@include put_job
--@include paused
expect('hash', KEYS[6], KEYS[7])
expect('zset', KEYS[1], KEYS[2], KEYS[5])
if redis.call('ZSCORE', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return 0
end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
-- Runs would pile up during a pause.
local last = redis.call('HGET', KEYS[6], ARGV[1])
local jobs = string.sub(KEYS[3], 1, #KEYS[3] - #ARGV[4])
if last and is_paused(KEYS[7], ARGV[6], ARGV[7]) and redis.call('EXISTS', jobs .. last) == 1 then
  return 0
end
redis.call('HSET', KEYS[6], ARGV[1], ARGV[4])
return put_job(KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[4], ARGV[5], server_ms())
