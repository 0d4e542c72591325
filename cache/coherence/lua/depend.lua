-- depend.lua: note that an agent's value holds something, before the value is stored.
-- KEYS[1] index hash of the dependency
-- ARGV[1] member (who depends)  ARGV[2] time of the lease, us  ARGV[3] ttl_ms  ARGV[4] max_members
-- returns 1 noted | 0 the dependency was invalidated after the lease: do not store
-- Members are 'm' + name -> when noted, us; 'f' is the last invalidation; 'o' marks an overflow,
-- after which invalidating means everything.
local time = redis.call('TIME')
local floor = redis.call('HGET', KEYS[1], 'f')
if floor and tonumber(floor) >= tonumber(ARGV[2]) then
  return 0
end
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
