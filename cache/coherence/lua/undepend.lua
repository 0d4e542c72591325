#!lua flags=allow-oom
-- undepend.lua: raise a dependency's floor and name who must be invalidated, or forget them after.
-- KEYS[1] index hash of the dependency
-- ARGV[1] 'begin'  ARGV[2] ttl_ms of a floor
-- returns the fields and values, flat; empty when there was no index
-- ARGV[1] 'end'  ARGV[2...] field, value: forgotten unless noted anew meanwhile
-- returns the number forgotten
if ARGV[1] == 'begin' then
  local all = redis.call('HGETALL', KEYS[1])
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'f', string.format('%.0f', time[1] * 1000000 + time[2]))
  if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
    redis.call('PEXPIRE', KEYS[1], ARGV[2])
  end
  return all
end
local gone = 0
for i = 2, #ARGV, 2 do
  if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[i + 1] then
    gone = gone + redis.call('HDEL', KEYS[1], ARGV[i])
  end
end
return gone
