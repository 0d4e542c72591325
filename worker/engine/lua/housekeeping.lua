#!lua flags=allow-oom
-- housekeeping.lua: list a worker, let one worker listen for stock clients' jobs, remove stale entries.
-- KEYS[1] workers  KEYS[2] abort marks  KEYS[3] listener
--   and, derived from the prefix: job:<id>
-- ARGV[1] prefix  ARGV[2] worker id  ARGV[3] ms after which a worker that has not called again is removed
-- returns 1 when this worker is the one that listens for stock clients' jobs | 0
-- allow-oom: as beat.lua, and stale entries make room.
--@rights
--@include types
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- This read and the first write fail for a key of another type, before anything is written.
local old_marks = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - 60000, 'LIMIT', 0, 100)
redis.call('ZADD', KEYS[1], now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
-- A mark without a job would abort a later job with the same id.
for _, id in ipairs(old_marks) do
  if redis.call('EXISTS', ARGV[1] .. 'job:' .. id) == 0 then
    redis.call('ZREM', KEYS[2], id)
  end
end
local listener = text_of(KEYS[3])
if not listener or listener == ARGV[2] then
  redis.call('SET', KEYS[3], ARGV[2], 'PX', ARGV[3])
  return 1
end
return 0
