#!lua
-- schedule.lua: register a repeating job, or change it.
-- KEYS[1] schedules  KEYS[2] their jobs  KEYS[3] wake token
-- ARGV[1] id  ARGV[2] job and interval or cron, msgpack  ARGV[3] interval, ms; 0 for a cron
-- returns 1
-- A cron gets due time 0: the next worker computes its first tick and does not run it before.
-- no allow-oom: it adds jobs.
--@rights
--@include types
expect('zset', KEYS[1], KEYS[3])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local same = redis.call('HGET', KEYS[2], ARGV[1]) == ARGV[2]
if same and redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  return 1
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
local every = tonumber(ARGV[3])
redis.call('ZADD', KEYS[1], every > 0 and now + every or 0, ARGV[1])
redis.call('ZADD', KEYS[3], 0, 'w')
return 1
