#!lua flags=no-writes
-- messages_list.lua: read a page of a conversation's window, newest first.
-- KEYS[1] version of the agent's windows  KEYS[2] state  KEYS[3] sorted set: sequence_id -> message
-- ARGV[1] run of the server, 8 bytes  ARGV[2] only messages before this
-- sequence_id, '' for the newest  ARGV[3] limit, 0 for the whole window even if it is incomplete
-- returns {state or false, members}; members are false when the window cannot answer
--       | {state, the first members of the page, sequence_id of the last}: the page is large. Ask for what is
--         before it; the page stands if all its parts come with the same state
--@include window
local MOST_BYTES = 524288
local state = redis.call('GET', KEYS[2])
local window = window_of(state, redis.call('GET', KEYS[1]), ARGV[1], KEYS[3])
if not window or window.gap then
  return {state, false}
end
local limit = tonumber(ARGV[3])
local members
if window.heavy then
  local first = ARGV[2] == '' and 0 or redis.call('ZCOUNT', KEYS[3], ARGV[2], '+inf')
  local last = limit == 0 and redis.call('ZCARD', KEYS[3]) or first + limit
  members = {}
  local bytes = 0
  for rank = first, last - 1 do
    local row = redis.call('ZRANGE', KEYS[3], rank, rank, 'REV', 'WITHSCORES')
    if not row[1] then
      break
    end
    members[#members + 1], bytes = row[1], bytes + #row[1]
    if bytes > MOST_BYTES and rank < last - 1 then
      return {state, members, row[2]}
    end
  end
elseif ARGV[2] == '' then
  members = redis.call('ZRANGE', KEYS[3], 0, limit - 1, 'REV')
else
  members = redis.call('ZRANGE', KEYS[3], '(' .. ARGV[2], '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, limit)
end
if #members < limit and not window.complete then
  return {state, false}
end
return {state, members}
