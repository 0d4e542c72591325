#!lua
-- schedule.lua: register a repeating job, or change it.
-- KEYS[1] schedules  KEYS[2] their jobs  KEYS[3] wake token
-- ARGV[1] id  ARGV[2] job and interval or cron, msgpack  ARGV[3] interval, ms; 0 for a cron
-- returns 1
-- A cron gets due time 0: the next worker computes its first tick and does not run it before. One that is
-- switched off stays off (switch.lua).
-- no allow-oom: it adds jobs.
--@rights
--@include types
--@include held
expect('zset', KEYS[1], KEYS[3])
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local same, was = redis.call('HGET', KEYS[2], ARGV[1]) == ARGV[2], redis.call('ZSCORE', KEYS[1], ARGV[1])
if same and was then
  return 1
end
local every = tonumber(ARGV[3])
local due = every > 0 and now + every or 0
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[1], number_of(was, 0) >= HELD and held_at(due) or due, ARGV[1])
redis.call('ZADD', KEYS[3], 0, 'w')
return 1
