-- messages_drop.lua: forget one conversation's window and refuse what is being loaded for it.
-- KEYS[1] entry hash of the agent's windows  KEYS[2] sorted set: sequence_id -> message
-- ARGV[1] conversation
-- returns 1 there was a window | 0 there was none
redis.call('HDEL', KEYS[1], 'l' .. ARGV[1])
redis.call('UNLINK', KEYS[2])
return redis.call('HDEL', KEYS[1], 'v' .. ARGV[1])
