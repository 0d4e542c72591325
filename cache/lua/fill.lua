-- fill.lua: store a value, but only for the holder of the lease.
-- KEYS[1] entry hash
-- ARGV[1] field  ARGV[2] token  ARGV[3] floor of the grant  ARGV[4] envelope
-- ARGV[5] ttl_ms > 0  ARGV[6] max_fields
-- returns 1 stored | 2 stored, and others wait for it | 0 lease lost or invalidated, nothing written
-- The envelope's bytes 9-16 are the token, so a repeated fill knows its own value.
--@include held
local key, field, token = KEYS[1], ARGV[1], ARGV[2]
local waiting = held(key, field, token, ARGV[3])
if not waiting then
  local value = redis.call('HGET', key, 'v' .. field)
  return value and string.sub(value, 9, 16) == token and 1 or 0
end
redis.call('HDEL', key, 'l' .. field)
if redis.call('HEXISTS', key, 'v' .. field) == 0 then
  make_room(key, tonumber(ARGV[6]))
end
redis.call('HSET', key, 'f', ARGV[3], 'v' .. field, ARGV[4])
if redis.call('PTTL', key) < tonumber(ARGV[5]) then
  redis.call('PEXPIRE', key, ARGV[5])
end
return waiting == '1' and 2 or 1
