#!lua flags=allow-oom
-- run_now.lua: make deferred jobs due now.
-- KEYS[1..4] queues  KEYS[5] running  KEYS[6] wake token; and, derived from the prefix: in-progress:<id>
-- ARGV[1] prefix  ARGV[2..] different ids, <= 200
-- returns how many were deferred; running, due and held jobs stay as they are
-- allow-oom: it adds nothing.
--@rights
--@include types
--@include held
--@include pauses
expect('zset', unpack(KEYS, 1, 6))
local t = redis.call('TIME')
local now, ids = t[1] * 1000 + math.floor(t[2] / 1000), {unpack(ARGV, 2)}
local running, free, done = redis.call('ZMSCORE', KEYS[5], unpack(ids)), {}, 0
for i, id in ipairs(ids) do
  free[i] = not running[i] and redis.call('EXISTS', ARGV[1] .. 'in-progress:' .. id) == 0
end
for number = 1, 4 do
  local moved = {}
  for i, text in ipairs(redis.call('ZMSCORE', KEYS[number], unpack(ids))) do
    local due = number_of(text)
    if free[i] and due and due > now and due < HELD then
      moved[#moved + 1], moved[#moved + 2] = now, ids[i]
    end
  end
  if #moved > 0 then
    done = done + #moved / 2
    redis.call('ZADD', KEYS[number], 'XX', unpack(moved))
  end
end
if done > 0 then
  redis.call('ZADD', KEYS[6], 0, 'w')
end
return done
