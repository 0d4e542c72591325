-- messages_list.lua: a page of a conversation's window, newest first.
-- KEYS[1] floor of the agent's windows  KEYS[2] state  KEYS[3] sorted set: sequence_id -> message
-- KEYS[4] era (absent on a cluster, where it is on another slot)
-- ARGV[1] mark of the era as the caller knows it, 8 bytes  ARGV[2] page from below this sequence_id, '' for the newest
-- ARGV[3] limit, 0 for the whole window wherever it begins
-- returns {state or false, members, era}; false for members when the window cannot answer
-- A state is the mark of its era, fill id, then floor:tail:count:complete:key of the set. Floor and
-- set must agree with it: each may have been evicted alone.
local state = redis.call('GET', KEYS[2])
local era = KEYS[4] and redis.call('GET', KEYS[4]) or false
if not state or string.sub(state, 1, 8) ~= ARGV[1] then
  return {state, false, era}
end
local floor, tail, count, complete = string.match(state, '^(%d+):(%d*):(%d+):(%d):', 17)
local newest = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')
if redis.call('GET', KEYS[1]) ~= floor or redis.call('ZCARD', KEYS[3]) ~= tonumber(count) then
  return {state, false, era}
end
if newest[2] and tonumber(newest[2]) ~= tonumber(tail) then
  return {state, false, era}
end
local limit = tonumber(ARGV[3])
local members
if ARGV[2] == '' then
  members = redis.call('ZRANGE', KEYS[3], 0, limit - 1, 'REV')
else
  members = redis.call('ZRANGE', KEYS[3], '(' .. ARGV[2], '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, limit)
end
if #members < limit and complete ~= '1' then
  return {state, false, era}
end
return {state, members, era}
