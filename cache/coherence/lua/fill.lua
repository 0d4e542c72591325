-- fill.lua: store a value, but only for the holder of the lease.
-- KEYS[1] version of the entry  KEYS[2] value  KEYS[3] lease      (one hash tag, one slot)
-- ARGV[1] token  ARGV[2] version of the grant  ARGV[3] envelope  ARGV[4] ttl_ms > 0
-- returns 1 stored | 2 stored, and others wait for it | 0 lease lost or invalidated, nothing written
-- Bytes 9-16 of the envelope are the token, so a fill that is sent twice recognizes its own value.
--@include held
local waiting = waiting_if_held(KEYS[1], KEYS[3], ARGV[1], ARGV[2])
if not waiting then
  return redis.call('GETRANGE', KEYS[2], 8, 15) == ARGV[1] and 1 or 0
end
redis.call('UNLINK', KEYS[3])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
outlive(KEYS[1], ARGV[4])
return waiting == '1' and 2 or 1
