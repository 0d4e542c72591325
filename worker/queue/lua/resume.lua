#!lua flags=allow-oom
-- resume.lua: make held jobs of a function due again, one step of at most 500.
-- KEYS[1] paused  KEYS[2] wake token  KEYS[3..6] queues critical, high, default, low
--   and, derived from the queues: <queue>:held:<function>
-- ARGV[1] function
-- returns how many it looked at | 0: all are back, or the function is paused again
-- allow-oom: a full server must be able to run its jobs, which frees memory.
--@rights
--@include types
--@include held
--@include give_back
expect('zset', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
expect('hash', KEYS[1])
if redis.call('HEXISTS', KEYS[1], 'resume:' .. ARGV[1]) == 0 then
  return 0
end
local looked = give_back(KEYS[1], {KEYS[3], KEYS[4], KEYS[5], KEYS[6]}, ARGV[1], MOST_HELD)
redis.call('ZADD', KEYS[2], 0, 'w')
return looked
