-- invalidate.lua: forget everything about one agent and raise the floor.
-- KEYS[1] entry hash  ARGV[1] floor_ttl_ms, at least the longest lease
-- returns the number of fields forgotten
-- Values and leases of every scope go with the hash; the floor makes a grant from before differ
-- from any after, also when a delayed copy of its command arrives now.
local time = redis.call('TIME')
local floor = time[1] * 1000000 + time[2]
local old = redis.call('HGET', KEYS[1], 'f')
if old and tonumber(old) >= floor then
  floor = tonumber(old) + 1
end
local fields = redis.call('HLEN', KEYS[1])
redis.call('UNLINK', KEYS[1])
redis.call('HSET', KEYS[1], 'f', string.format('%.0f', floor))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return old and fields - 1 or fields
