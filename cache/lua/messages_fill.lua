-- messages_fill.lua: replace a conversation's window, but only for the holder of the lease.
-- KEYS[1] entry hash of the agent's windows  KEYS[2] sorted set: sequence_id -> message
-- ARGV[1] conversation  ARGV[2] token  ARGV[3] floor of the grant  ARGV[4] state
-- ARGV[5] ttl_ms > 0  ARGV[6] max_fields  ARGV[7...] sequence_id, message; oldest first
-- returns 1 stored | 2 stored, and others wait for it | 0 lease lost or invalidated, nothing written
-- Every append deletes the lease, so a window loaded before a message cannot hide it.
--@include held
local key, field, token = KEYS[1], ARGV[1], ARGV[2]
local waiting = held(key, field, token, ARGV[3])
if not waiting then
  local state = redis.call('HGET', key, 'v' .. field)
  return state and string.sub(state, 9, 16) == token and 1 or 0
end
redis.call('HDEL', key, 'l' .. field)
if redis.call('HEXISTS', key, 'v' .. field) == 0 then
  make_room(key, tonumber(ARGV[6]))
end
redis.call('HSET', key, 'f', ARGV[3], 'v' .. field, ARGV[4])
redis.call('UNLINK', KEYS[2])
for i = 7, #ARGV, 2 do
  redis.call('ZADD', KEYS[2], ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', KEYS[2], ARGV[5])
if redis.call('PTTL', key) < tonumber(ARGV[5]) then
  redis.call('PEXPIRE', key, ARGV[5])
end
return waiting == '1' and 2 or 1
