#!lua
-- fill.lua: store a value and record what it depends on, but only for the holder of the lease.
-- KEYS[1] version of the entry  KEYS[2] value  KEYS[3] lease      (one hash tag, one slot)
-- KEYS[4...] indexes of its dependencies and organization; none on a cluster (depend.lua)
-- ARGV[1] token  ARGV[2] version of the grant  ARGV[3] envelope, '' if it was sent before (staged_of)
-- ARGV[4] ttl_ms > 0
-- ARGV[5...9] with indexes: the arguments of depend.lua
-- returns 1 stored | 2 stored, and others wait for it | 0 lease lost or invalidated, or a dependency
--         has changed since the lease or is about to: nothing stored or recorded, no lease held
-- Bytes 9-16 of the envelope are the token, so a fill that is sent twice recognizes its own value.
-- no allow-oom: it adds a value, and a value that is not stored is a miss.
--@include held
--@include depend
local waiting = waiting_if_held(KEYS[1], KEYS[3], ARGV[1], ARGV[2])
if not waiting then
  return redis.call('GETRANGE', KEYS[2], 8, 15) == ARGV[1] and 1 or 0
end
local indexes, members = {unpack(KEYS, 4, #KEYS - 1)}, {}
if #indexes > 0 then
  members = to_list(indexes, ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[8]), tonumber(ARGV[9]))
end
redis.call('UNLINK', KEYS[3])
local staged = ARGV[3] == '' and staged_of(KEYS[1], ARGV[1])
if not members or (staged and redis.call('EXISTS', staged) == 0) then
  return 0
end
list(indexes, members, ARGV[7])
if staged then
  redis.call('RENAME', staged, KEYS[2])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
else
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
end
outlive(KEYS[1], ARGV[4])
return waiting == '1' and 2 or 1
