-- messages_list.lua: a page of a conversation's window, newest first.
-- KEYS[1] entry hash of the agent's windows  KEYS[2] sorted set: sequence_id -> message
-- ARGV[1] conversation  ARGV[2] incarnation, 8 bytes  ARGV[3] page from below this sequence_id, ''
-- for the newest  ARGV[4] limit, 0 for the whole window wherever it begins
-- returns {state, members}, or {false or state} when the window cannot answer
-- A state is incarnation, fill id, then tail:count:complete. The set must agree with it: either may
-- have been evicted alone.
local state = redis.call('HGET', KEYS[1], 'v' .. ARGV[1])
if not state or string.sub(state, 1, 8) ~= ARGV[2] then
  return {state}
end
local tail, count, complete = string.match(state, '^(%d*):(%d+):(%d)$', 17)
local newest = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
if redis.call('ZCARD', KEYS[2]) ~= tonumber(count) then
  return {state}
end
if newest[2] and tonumber(newest[2]) ~= tonumber(tail) then
  return {state}
end
local limit = tonumber(ARGV[4])
local members
if ARGV[3] == '' then
  members = redis.call('ZRANGE', KEYS[2], 0, limit - 1, 'REV')
else
  members = redis.call('ZRANGE', KEYS[2], '(' .. ARGV[3], '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, limit)
end
if #members < limit and complete ~= '1' then
  return {state}
end
return {state, members}
