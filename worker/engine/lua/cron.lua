#!lua
-- cron.lua: enqueue one tick of a cron job, once for all workers.
-- KEYS[1] last ticks  KEYS[2] queue  KEYS[3] job body  KEYS[4] result  KEYS[5] wake token  KEYS[6] paused
-- KEYS[7] crons that are off  KEYS[8] jobs of the last ticks  KEYS[9] next ticks; and the body of the last tick's job
-- ARGV[1] name of its ticks  ARGV[2] tick, Unix ms  ARGV[3] job id  ARGV[4] body
-- ARGV[5] 1: once for all workers | 0: once for each worker
-- ARGV[6] '' | for a missed tick: the last tick this worker read; only one worker's compare-and-set wins
-- ARGV[7] the new last tick  ARGV[8] the server's clock as this worker knows it, Unix ms
-- ARGV[9] function  ARGV[10] cron's name  ARGV[11] its tick after this one, Unix ms
-- returns 1 enqueued | 0 this tick or a later one was enqueued already, a job with this id exists, the cron
--   is switched off, or the function is paused and the job of an earlier tick waits
-- no allow-oom: it adds a job.
--@rights
--@include types
--@include put_job
--@include paused
expect('hash', KEYS[1], KEYS[6], KEYS[7], KEYS[8], KEYS[9])
expect('zset', KEYS[2], KEYS[5])
redis.call('HSET', KEYS[9], ARGV[10], ARGV[11] .. ':' .. ARGV[9])
local off = redis.call('HMGET', KEYS[7], ARGV[1], ARGV[10])
if off[1] or off[2] then
  return 0
end
-- Ticks would pile up during a pause.
if is_paused(KEYS[6], ARGV[9], 'default') then
  local before = redis.call('HGET', KEYS[1], ARGV[1]) or ''
  local jobs = string.sub(KEYS[3], 1, #KEYS[3] - #ARGV[3])
  if ARGV[5] == '0' or redis.call('EXISTS', jobs .. ARGV[1] .. ':' .. before) == 1 then
    return 0
  end
end
if ARGV[5] == '1' then
  local last = redis.call('HGET', KEYS[1], ARGV[1])
  -- A last tick in the future was written before the server's clock was set back.
  local counts = last and number_of(last, 0) <= tonumber(ARGV[8]) + 60000
  if counts and (number_of(last, 0) >= tonumber(ARGV[2]) or (ARGV[6] ~= '' and last ~= ARGV[6])) then
    return 0
  end
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[7])
end
redis.call('HSET', KEYS[8], ARGV[1], ARGV[3])
return put_job(KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[3], ARGV[4], server_ms())
