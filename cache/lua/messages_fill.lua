-- messages_fill.lua: replace a conversation's window, but only for the holder of the lease.
-- KEYS[1] version of the agent's windows  KEYS[2] state  KEYS[3] lease
-- KEYS[4] sorted set: sequence_id -> message
-- ARGV[1] token  ARGV[2] version of the grant  ARGV[3] state  ARGV[4] ttl_ms > 0
-- ARGV[5...] sequence_id, message; oldest first
-- returns 1 stored | 2 stored, and others wait for it | 0 lease lost or invalidated, nothing written
-- Every append deletes the lease, so a window that was loaded before a message is refused.
--@include held
local waiting = waiting_if_held(KEYS[1], KEYS[3], ARGV[1], ARGV[2])
if not waiting then
  return redis.call('GETRANGE', KEYS[2], 8, 15) == ARGV[1] and 1 or 0
end
redis.call('UNLINK', KEYS[3], KEYS[4])
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
for i = 5, #ARGV, 2 do
  redis.call('ZADD', KEYS[4], ARGV[i], ARGV[i + 1])
end
redis.call('PEXPIRE', KEYS[4], ARGV[4])
outlive(KEYS[1], ARGV[4])
return waiting == '1' and 2 or 1
