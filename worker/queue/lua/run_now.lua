#!lua flags=allow-oom
-- run_now.lua: make deferred jobs due now.
-- KEYS[1..4] queues  KEYS[5] running  KEYS[6] wake token; and, derived from the prefix: in-progress:<id>
-- ARGV[1] prefix  ARGV[2..] ids, <= 50
-- returns how many were deferred; running, due and held jobs stay as they are
-- allow-oom: it adds nothing.
--@rights
--@include types
--@include pauses
expect('zset', unpack(KEYS, 1, 6))
local t = redis.call('TIME')
local now, done = t[1] * 1000 + math.floor(t[2] / 1000), 0
for i = 2, #ARGV do
  local id = ARGV[i]
  if not redis.call('ZSCORE', KEYS[5], id) and redis.call('EXISTS', ARGV[1] .. 'in-progress:' .. id) == 0 then
    for number = 1, 4 do
      local due = number_of(redis.call('ZSCORE', KEYS[number], id))
      if due and due > now and due < HELD then
        redis.call('ZADD', KEYS[number], 'XX', now, id)
        done = done + 1
      end
    end
  end
end
if done > 0 then
  redis.call('ZADD', KEYS[6], 0, 'w')
end
return done
