-- messages_append.lua: add committed messages to a window, or drop what can no longer be trusted.
-- KEYS[1] entry hash of the agent's windows  KEYS[2] sorted set: sequence_id -> message
-- ARGV[1] conversation  ARGV[2] incarnation, 8 bytes  ARGV[3] the predecessor's sequence_id, ''
-- when the conversation was empty  ARGV[4] ttl_ms > 0  ARGV[5] most messages kept
-- ARGV[6...] sequence_id, message; oldest first, at least one
-- returns 1 added | 2 added already by this same call | 0 no window, nothing to add to |
--         -1 the window did not end at the predecessor, or ended after the message: dropped
-- Every append deletes the fill lease: what is being loaded may lack these messages.
local key, set, field = KEYS[1], KEYS[2], ARGV[1]
redis.call('HDEL', key, 'l' .. field)
local state = redis.call('HGET', key, 'v' .. field)
if not state then
  return 0
end
local tail, count, complete = string.match(state, '^(%d*):(%d+):(%d)$', 17)
local last = ARGV[#ARGV - 1]
if tonumber(tail) == tonumber(last) and tail ~= '' then
  local known = true
  for i = 6, #ARGV, 2 do
    known = known and redis.call('ZSCORE', set, ARGV[i + 1])
  end
  if known then
    return 2
  end
end
local trusted = string.sub(state, 1, 8) == ARGV[2] and redis.call('ZCARD', set) == tonumber(count)
if tail ~= ARGV[3] or (tail == '' and complete ~= '1') then -- the predecessor check
  trusted = false
end
if tail ~= '' and tonumber(ARGV[6]) <= tonumber(tail) then -- the late-commit rule
  trusted = false
end
if not trusted then
  redis.call('HDEL', key, 'v' .. field)
  redis.call('UNLINK', set)
  return -1
end
for i = 6, #ARGV, 2 do
  redis.call('ZADD', set, ARGV[i], ARGV[i + 1])
end
local surplus = redis.call('ZCARD', set) - tonumber(ARGV[5])
if surplus > 0 then
  redis.call('ZREMRANGEBYRANK', set, 0, surplus - 1)
  complete = '0'
end
local size = redis.call('ZCARD', set)
-- The fill id goes: a repeated fill of before must not take this window for its own.
redis.call('HSET', key, 'v' .. field,
  ARGV[2] .. string.rep('\0', 8) .. last .. ':' .. size .. ':' .. complete)
redis.call('PEXPIRE', set, ARGV[4])
if redis.call('PTTL', key) < tonumber(ARGV[4]) then
  redis.call('PEXPIRE', key, ARGV[4])
end
return 1
