-- depend.lua: record that an agent's value depends on something, before the value is stored.
-- KEYS[1] index of the dependency, a hash
-- ARGV[1] agent  ARGV[2] time of the lease, us  ARGV[3] ttl_ms  ARGV[4] most agents listed
-- returns 1 recorded | 0 the dependency was invalidated after the lease: do not store
-- Fields: 'm' + agent is the time of its record, us; 'i' is the time of the last invalidation, us;
-- 'o' means that the index overflowed, after which an invalidation forgets everything.
local time = redis.call('TIME')
local invalidated_us = redis.call('HGET', KEYS[1], 'i')
-- rule dependency_version
if invalidated_us and tonumber(invalidated_us) >= tonumber(ARGV[2]) then
  return 0
end
-- end of rule
local member = 'm' .. ARGV[1]
if redis.call('HEXISTS', KEYS[1], member) == 0 and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[4]) then
  redis.call('HSET', KEYS[1], 'o', '1')
else
  redis.call('HSET', KEYS[1], member, string.format('%.0f', time[1] * 1000000 + time[2]))
end
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[3]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return 1
