#!lua flags=allow-oom
-- release.lua: give a lease back without a value: the loader failed, or its value cannot be kept.
-- KEYS[1] lease  ARGV[1] token
-- returns 2 released, and others wait for it | 1 released | 0 not the holder
-- allow-oom: it only deletes.
local lease = redis.call('GET', KEYS[1])
if not lease or string.sub(lease, 1, 8) ~= ARGV[1] then
  return 0
end
redis.call('UNLINK', KEYS[1])
local flag = string.sub(lease, 9, 9)
return (flag == '1' or flag == '3') and 2 or 1
