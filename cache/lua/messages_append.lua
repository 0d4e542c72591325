-- messages_append.lua: add committed messages to a window, or drop what can no longer be trusted.
-- KEYS[1] floor of the agent's windows  KEYS[2] state  KEYS[3] lease
-- KEYS[4] sorted set: sequence_id -> message
-- ARGV[1] mark of the era, 8 bytes  ARGV[2] the predecessor's sequence_id, '' when the conversation
-- was empty  ARGV[3] ttl_ms > 0  ARGV[4] most messages kept
-- ARGV[5...] sequence_id, message; oldest first, at least one
-- returns 1 added | 2 added already by this same call | 0 no window, nothing to add to |
--         -1 the window did not end at the predecessor, or ended after the message: dropped
-- Every append deletes the fill lease: what is being loaded may lack these messages.
--@include held
local set = KEYS[4]
redis.call('UNLINK', KEYS[3])
local state = redis.call('GET', KEYS[2])
if not state then
  return 0
end
local floor, tail, count, complete = string.match(state, '^(%d+):(%d*):(%d+):(%d):', 17)
local last = ARGV[#ARGV - 1]
if tail ~= '' and tonumber(tail) == tonumber(last) then
  local known = true
  for i = 5, #ARGV, 2 do
    known = known and redis.call('ZSCORE', set, ARGV[i + 1])
  end
  if known then
    return 2
  end
end
local trusted = string.sub(state, 1, 8) == ARGV[1]
  and redis.call('GET', KEYS[1]) == floor
  and redis.call('ZCARD', set) == tonumber(count)
if tail ~= ARGV[2] or (tail == '' and complete ~= '1') then -- the predecessor check
  trusted = false
end
if tail ~= '' and tonumber(ARGV[5]) <= tonumber(tail) then -- the late-commit rule
  trusted = false
end
if not trusted then
  redis.call('UNLINK', KEYS[2], set)
  return -1
end
for i = 5, #ARGV, 2 do
  redis.call('ZADD', set, ARGV[i], ARGV[i + 1])
end
local surplus = redis.call('ZCARD', set) - tonumber(ARGV[4])
if surplus > 0 then
  redis.call('ZREMRANGEBYRANK', set, 0, surplus - 1)
  complete = '0'
end
-- The fill id goes: a repeated fill of before must not take this window for its own.
local numbers = table.concat({floor, last, redis.call('ZCARD', set), complete, set}, ':')
redis.call('SET', KEYS[2], ARGV[1] .. string.rep('\0', 8) .. numbers, 'PX', ARGV[3])
redis.call('PEXPIRE', set, ARGV[3])
outlive(KEYS[1], ARGV[3])
return 1
