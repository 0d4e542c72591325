#!lua
-- messages_fill.lua: replace a conversation's window, but only for the holder of the lease.
-- KEYS[1] version of the agent's windows  KEYS[2] state  KEYS[3] lease
-- KEYS[4] sorted set: sequence_id -> message  KEYS[5] appends kept aside
-- ARGV[1] token  ARGV[2] version of the grant  ARGV[3] run of the server, 8 bytes  ARGV[4] ttl_ms > 0
-- ARGV[5] 1: the messages reach the conversation's beginning | 0  ARGV[6] most messages kept
-- ARGV[7...] sequence_id, message; oldest first. ARGV[7] '' alone: they were sent before (staged_of)
-- returns 0 lease lost, invalidated, or an append aside was lost: nothing stored | 1 stored | 2 stored,
--         and others wait for it | 3, 4 as 1, 2, but with appends that the load may lack
-- no allow-oom: as fill.lua.
--@include held
--@include window
--@include aside
local set, aside = KEYS[4], KEYS[5]
local flag = waiting_if_held(KEYS[1], KEYS[3], ARGV[1], ARGV[2])
if not flag then
  return redis.call('GETRANGE', KEYS[2], 8, 15) == ARGV[1] and 1 or 0
end
local lease = redis.call('GET', KEYS[3])
local merged = has_aside(lease)
local appends = merged and kept_aside(aside) or {}
redis.call('UNLINK', KEYS[3])
-- rule aside_lost: the server may have evicted what this load lacks
if merged and #appends == 0 then
  return 0
end
-- end of rule
local window = {since = granted(lease), complete = ARGV[5] == '1'}
window.tail = #ARGV > 6 and tonumber(ARGV[#ARGV - 1]) or nil
if ARGV[7] == '' then
  local staged = staged_of(KEYS[1], ARGV[1])
  window.tail = tonumber(redis.call('ZRANGE', staged, -1, -1, 'WITHSCORES')[2])
  if not window.tail then
    return 0
  end
  redis.call('RENAME', staged, set)
  window.heavy = true
else
  redis.call('UNLINK', set)
  for i = 7, #ARGV, 200 do
    redis.call('ZADD', set, unpack(ARGV, i, math.min(i + 199, #ARGV)))
  end
end
settle(window, set, appends)
if not window.gap then
  redis.call('UNLINK', aside)
end
-- Sent again after its reply was lost, a fill with appends does not take this window for its own.
local id = merged and string.rep('\0', 8) or ARGV[1]
store(window, KEYS[2], set, ARGV[3] .. id, ARGV[2], ARGV[4], ARGV[6])
outlive(KEYS[1], ARGV[4])
local waiting = flag == '1' or flag == '3'
return (waiting and 2 or 1) + (merged and 2 or 0)
