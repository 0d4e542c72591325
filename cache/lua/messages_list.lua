#!lua flags=no-writes
-- messages_list.lua: read a page of a conversation's window, newest first.
-- KEYS[1] version of the agent's windows  KEYS[2] state  KEYS[3] sorted set: sequence_id -> message
-- ARGV[1] run of the server, 8 bytes  ARGV[2] only messages before this
-- sequence_id, '' for the newest  ARGV[3] limit, 0 for the whole window even if it is incomplete
-- returns {state or false, members}; members are false when the window cannot answer
--@include window
local state = redis.call('GET', KEYS[2])
local window = window_of(state, redis.call('GET', KEYS[1]), ARGV[1], KEYS[3])
if not window or window.gap then
  return {state, false}
end
local limit = tonumber(ARGV[3])
local members
if ARGV[2] == '' then
  members = redis.call('ZRANGE', KEYS[3], 0, limit - 1, 'REV')
else
  members = redis.call('ZRANGE', KEYS[3], '(' .. ARGV[2], '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, limit)
end
if #members < limit and not window.complete then
  return {state, false}
end
return {state, members}
