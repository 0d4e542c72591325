#!lua flags=allow-oom
-- pause.lua: pause a priority or a function, or end its pause.
-- KEYS[1] paused  KEYS[2] wake token
-- ARGV[1] "priority" | "function"  ARGV[2] its name  ARGV[3] 1: pause | 0: resume  ARGV[4] most pauses
-- returns 1 changed | 0 it was so already | -1 there are too many pauses
-- allow-oom: a full server must obey its operator. Every claim reads the pauses. After a
--   resume, resume.lua and the workers' polls make held jobs due again.
--@rights
--@include types
expect('hash', KEYS[1])
expect('zset', KEYS[2])
local field, back = ARGV[1] .. ':' .. ARGV[2], 'resume:' .. ARGV[2]
local is_function = ARGV[1] == 'function'
local is_paused = redis.call('HEXISTS', KEYS[1], field) == 1
local t = redis.call('TIME')
if ARGV[3] == '1' then
  if is_paused then
    return 0
  end
  if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
    return -1
  end
  redis.call('HSET', KEYS[1], field, t[1] * 1000 + math.floor(t[2] / 1000))
  if is_function then
    redis.call('HDEL', KEYS[1], back)
  end
  return 1
end
if not is_paused then
  return 0
end
if is_function then
  redis.call('HSET', KEYS[1], back, redis.call('HGET', KEYS[1], field))
end
redis.call('HDEL', KEYS[1], field)
redis.call('ZADD', KEYS[2], 0, 'w')
return 1
