-- messages_list.lua: read a page of a conversation's window, newest first.
-- KEYS[1] version of the agent's windows  KEYS[2] state  KEYS[3] sorted set: sequence_id -> message
-- KEYS[4] era (absent on a cluster, where it is on another slot)
-- ARGV[1] mark of the era that the caller knows, 8 bytes  ARGV[2] only messages before this
-- sequence_id, '' for the newest  ARGV[3] limit, 0 for the whole window even if it is incomplete
-- returns {state or false, members, era}; members are false when the window cannot answer
-- A state is the mark of its era, the fill id, then version:tail:count:complete:key of the set. The
-- server may have evicted version or set alone, so both are compared with it.
local state = redis.call('GET', KEYS[2])
local era = KEYS[4] and redis.call('GET', KEYS[4]) or false
if not state or string.sub(state, 1, 8) ~= ARGV[1] then
  return {state, false, era}
end
local version, tail, count, complete = string.match(state, '^(%d+):(%d*):(%d+):(%d):', 17)
local newest = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')
if redis.call('GET', KEYS[1]) ~= version or redis.call('ZCARD', KEYS[3]) ~= tonumber(count) then
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
