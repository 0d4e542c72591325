#!lua flags=allow-oom
-- undepend.lua: begin or end the invalidation of a dependency.
-- KEYS[1] index of the dependency, a hash (its fields: depend.lua)
-- ARGV[1] 'begin'  ARGV[2] least ttl_ms of the index
-- returns the fields and values, flat; empty when there was no index
-- ARGV[1] 'end'  ARGV[2...] field, value: removed unless recorded again meanwhile
-- returns the number removed
-- 'begin' stores the time first, so a load that was granted its lease earlier cannot record
-- itself afterwards. Runs where memory is full, because an invalidation must.
if ARGV[1] == 'begin' then
  local all = redis.call('HGETALL', KEYS[1])
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'i', string.format('%.0f', time[1] * 1000000 + time[2]))
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
