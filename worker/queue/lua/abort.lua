#!lua flags=allow-oom
-- abort.lua: request a job's abort. A waiting job becomes due at once and ends without a run.
-- KEYS[1] abort set  KEYS[2] job body  KEYS[3] in-progress  KEYS[4] wake token  KEYS[5..8] queues
-- ARGV[1] id
-- returns 1 requested | 0 no such job waits or runs
-- allow-oom: an aborted job makes room.
--@rights
--@include types
expect('zset', KEYS[1], unpack(KEYS, 4, 8))
if redis.call('EXISTS', KEYS[2]) == 0 then
  return 0
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
-- The request is written first: a worker that sees the job due must also see the request.
redis.call('ZADD', KEYS[1], now, ARGV[1])
if redis.call('EXISTS', KEYS[3]) == 0 then
  for i = 5, 8 do
    redis.call('ZADD', KEYS[i], 'XX', now, ARGV[1])
  end
  redis.call('ZADD', KEYS[4], 0, 'w')
end
return 1
