-- messages_append.lua: add committed messages to a window, or drop a window that may lack some.
-- KEYS[1] version of the agent's windows  KEYS[2] state  KEYS[3] lease
-- KEYS[4] sorted set: sequence_id -> message
-- ARGV[1] mark of the era, 8 bytes  ARGV[2] sequence_id of the message before the first of these,
-- '' when the conversation was empty  ARGV[3] ttl_ms > 0  ARGV[4] most messages kept
-- ARGV[5...] sequence_id, message; oldest first, at least one
-- returns 1 added | 2 the same call added them before | 0 there is no window |
--         -1 dropped: the window did not end at the predecessor, or ended after the first message
--@include held
local set = KEYS[4]
-- rule append_ends_loads: a load that is running may lack these messages, so it must not store
redis.call('UNLINK', KEYS[3])
-- end of rule
local state = redis.call('GET', KEYS[2])
if not state then
  return 0
end
local version, tail, count, complete = string.match(state, '^(%d+):(%d*):(%d+):(%d):', 17)
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
  and redis.call('GET', KEYS[1]) == version
  and redis.call('ZCARD', set) == tonumber(count)
-- rule predecessor: a window that ends elsewhere lacks a message
if tail ~= ARGV[2] or (tail == '' and complete ~= '1') then
  trusted = false
end
-- end of rule
-- rule late_commit: a message from before the window's end may have predecessors that it lacks
if tail ~= '' and tonumber(ARGV[5]) <= tonumber(tail) then
  trusted = false
end
-- end of rule
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
-- The fill id becomes zeros, so that a fill that is sent again does not take this window for its own.
local numbers = table.concat({version, last, redis.call('ZCARD', set), complete, set}, ':')
redis.call('SET', KEYS[2], ARGV[1] .. string.rep('\0', 8) .. numbers, 'PX', ARGV[3])
redis.call('PEXPIRE', set, ARGV[3])
outlive(KEYS[1], ARGV[3])
return 1
