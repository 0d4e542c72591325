#!lua flags=allow-oom
-- beat.lua: a worker's heartbeat, with the housekeeping that any worker may do.
-- KEYS[1] this worker's heartbeat  KEYS[2] workers  KEYS[3] abort marks  KEYS[4] listener
--   and, derived from the prefix: job:<id>
-- ARGV[1] prefix  ARGV[2] worker id  ARGV[3] heartbeat, JSON  ARGV[4] its TTL, ms  ARGV[5] 1: may listen
-- returns 1 when this worker is the one that listens for stock clients' jobs | 0
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
redis.call('ZADD', KEYS[2], now, ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 60000)
-- A mark without a job would abort a later job of that id.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now - 60000, 'LIMIT', 0, 100)) do
  if redis.call('EXISTS', ARGV[1] .. 'job:' .. id) == 0 then
    redis.call('ZREM', KEYS[3], id)
  end
end
if ARGV[5] ~= '1' then
  return 0
end
local listener = redis.call('GET', KEYS[4])
if not listener or listener == ARGV[2] then
  redis.call('SET', KEYS[4], ARGV[2], 'PX', ARGV[4])
  return 1
end
return 0
