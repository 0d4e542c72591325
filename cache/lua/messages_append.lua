#!lua
-- messages_append.lua: add committed messages to a window, or keep them aside until they fit.
-- KEYS[1] version of the agent's windows  KEYS[2] state  KEYS[3] lease
-- KEYS[4] sorted set: sequence_id -> message  KEYS[5] appends kept aside
-- ARGV[1] run of the server, 8 bytes  ARGV[2] sequence_id of the message before the first of these,
-- '' when the conversation was empty  ARGV[3] ttl_ms > 0  ARGV[4] most messages kept
-- ARGV[5] ttl_ms of the appends aside  ARGV[6] most of them  ARGV[7] most bytes of them
-- ARGV[8] a time at or before the call, us  ARGV[9...] sequence_id, message; oldest first, at least one
-- returns 1 the window ends with them or has them | 2 kept aside: the message before them is not here
--         yet, or a load runs | 0 there is no window | -1 dropped: an append aside was lost, or there
--         were too many | the time, us: nothing done, as the load of what is here began after ARGV[8]
-- Such a load has read the messages, or that they are gone again: a copy of this command that arrives
-- late would bring back what was deleted meanwhile.
-- Appends are kept aside for a load too, which may have begun before their commit: the fill adds
-- them. The lease and the state say that there are some, so that their eviction is noticed.
-- no allow-oom: it adds messages; one that is refused ends the window.
--@include held
--@include window
--@include aside
local set, aside = KEYS[4], KEYS[5]
local version, state, lease = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2]), redis.call('GET', KEYS[3])
local window = window_of(state, version, ARGV[1], set)
local loading = lease and string.sub(lease, 26) == version
-- rule loaded_since
local since = math.max(tonumber(window and window.since or 0), tonumber(loading and granted(lease) or 0))
if since > tonumber(ARGV[8]) then
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
-- end of rule
local expected = window and window.gap or loading and has_aside(lease)
local appends, bytes = {}, 0
if expected then
  appends, bytes = kept_aside(aside)
end

local whole = #appends > 0 or not expected
local keep = loading or window and (window.gap or not follows(window, set, ARGV[2]))
if keep then
  for i = 10, #ARGV, 2 do
    bytes = bytes + #ARGV[i]
  end
  whole = whole and #appends < tonumber(ARGV[6]) and bytes <= tonumber(ARGV[7])
end
if not whole or not (window or loading) then
  redis.call('UNLINK', KEYS[2], KEYS[3], set, aside)
  return state and -1 or 0
end
if not expected then
  redis.call('UNLINK', aside) -- of a window or a load that is gone
end
if not window then
  redis.call('UNLINK', KEYS[2], set)
end
local append = {ARGV[2]}
for i = 9, #ARGV do
  append[i - 7] = ARGV[i]
end
if keep then
  redis.call('HSET', aside, ARGV[9], cmsgpack.pack(append))
  redis.call('PEXPIRE', aside, ARGV[5])
end
if loading then
  -- rule append_joins_loads: a load that is running may lack these messages
  redis.call('SETRANGE', KEYS[3], 8, with_aside(lease))
  -- end of rule
end
if not window then
  return 2
end
if keep then
  appends[#appends + 1] = append
  settle(window, set, appends)
  if not window.gap and not loading then
    redis.call('UNLINK', aside)
  end
else
  place(window, set, append)
end
-- The fill id becomes zeros, so that a fill that is sent again does not take this window for its own.
store(window, KEYS[2], set, ARGV[1] .. string.rep('\0', 8), version, ARGV[3], ARGV[4])
outlive(KEYS[1], ARGV[3])
return window.gap and 2 or 1
