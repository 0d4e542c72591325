-- A window is a sorted set, sequence_id -> message, and a state: the run of the server, the fill id,
-- then version:since:tail:count:complete:gap:key of the set. `since` is when its load began: the time of
-- the lease, us. 2 is added to `complete` if the window is heavy (_aside.lua). With a gap it does not
-- answer: an append is kept aside, in a hash, until the message before it is here.

-- window_of(state, version, run, set): the window that a state describes; nil if it may lack messages.
-- The server may have evicted version or set alone, so both are compared with the state.
local function window_of(state, version, run, set)
  local count = redis.call('ZCARD', set)
  local newest = redis.call('ZRANGE', set, -1, -1, 'WITHSCORES')[2]
  if not state or string.sub(state, 1, 8) ~= run then
    return nil
  end
  local made, since, tail, length, complete, gap =
    string.match(state, '^(%d+):(%d+):(%d*):(%d+):(%d):(%d):', 17)
  if made ~= version or count ~= tonumber(length) or tonumber(newest) ~= tonumber(tail) then
    return nil
  end
  local is_complete = complete == '1' or complete == '3'
  if count == 0 and not is_complete then
    return nil
  end
  local heavy = complete >= '2'
  return {since = since, tail = tonumber(tail), complete = is_complete, heavy = heavy, gap = gap == '1'}
end
