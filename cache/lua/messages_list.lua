-- messages_list.lua: a page of a conversation's window, newest first.
-- KEYS[1] floor of the agent's windows  KEYS[2] state  KEYS[3] sorted set: sequence_id -> message
-- ARGV[1] incarnation, 8 bytes  ARGV[2] page from below this sequence_id, '' for the newest
-- ARGV[3] limit, 0 for the whole window wherever it begins
-- returns {state, members}, or {false or state} when the window cannot answer
-- A state is incarnation, fill id, then floor:tail:count:complete. Floor and set must agree with
-- it: each may have been evicted alone.
local state = redis.call('GET', KEYS[2])
if not state or string.sub(state, 1, 8) ~= ARGV[1] then
  return {state}
end
local floor, tail, count, complete = string.match(state, '^(%d+):(%d*):(%d+):(%d)$', 17)
local newest = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')
if redis.call('GET', KEYS[1]) ~= floor or redis.call('ZCARD', KEYS[3]) ~= tonumber(count) then
  return {state}
end
if newest[2] and tonumber(newest[2]) ~= tonumber(tail) then
  return {state}
end
local limit = tonumber(ARGV[3])
local members
if ARGV[2] == '' then
  members = redis.call('ZRANGE', KEYS[3], 0, limit - 1, 'REV')
else
  members = redis.call('ZRANGE', KEYS[3], '(' .. ARGV[2], '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, limit)
end
if #members < limit and complete ~= '1' then
  return {state}
end
return {state, members}
