-- kept_aside(key): the appends in a hash, each {predecessor, sequence_id, message, ...}, and their
-- bytes; none if it was lost or is not ours.
local function kept_aside(key)
  local appends, bytes = redis.call('HVALS', key), 0
  for i = 1, #appends do
    bytes = bytes + #appends[i]
    local read, append = pcall(cmsgpack.unpack, appends[i])
    if not read or type(append) ~= 'table' or #append < 3 then
      return {}, 0
    end
    appends[i] = append
  end
  return appends, bytes
end

local function has(set, id)
  return redis.call('ZCOUNT', set, id, id) > 0
end

local function first_of(set)
  return tonumber(redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')[2])
end

-- follows(window, set, after): whether the window has the message that was committed before.
local function follows(window, set, after)
  if after == '' then
    return window.complete or window.tail ~= nil
  end
  -- rule predecessor: otherwise the window would have a hole
  local id = tonumber(after)
  if not window.tail or id >= window.tail then
    return id == window.tail
  end
  if not has(set, after) and (window.complete or id > first_of(set)) then
    return false
  end
  -- end of rule
  return true
end

-- place(window, set, append): add its messages.
local function place(window, set, append)
  for i = 2, #append, 2 do
    local id = tonumber(append[i])
    local belongs = true
    if window.tail and id <= window.tail then
      -- rule late_commit: the window lacks what is between its first message and an older one
      belongs = window.complete or id > first_of(set)
      -- end of rule
      belongs = belongs and not has(set, append[i])
    end
    if belongs then
      redis.call('ZADD', set, append[i], append[i + 1])
      window.longest = math.max(window.longest or 0, #append[i + 1])
      window.tail = math.max(window.tail or id, id)
    end
  end
end

-- settle(window, set, appends): place all that fit, in any order. Sets window.gap if some do not.
-- An append that does not follow waits for the message that it names, and for no other.
local function settle(window, set, appends)
  local ready, waiting, placed = {}, {}, 0
  for _, append in ipairs(appends) do
    if follows(window, set, append[1]) then
      table.insert(ready, append)
    else
      local after = tonumber(append[1]) or ''
      waiting[after] = waiting[after] or {}
      table.insert(waiting[after], append)
    end
  end
  while placed < #ready do
    placed = placed + 1
    place(window, set, ready[placed])
    for i = 2, #ready[placed], 2 do
      local id = tonumber(ready[placed][i])
      for _, append in ipairs(waiting[id] or {}) do
        table.insert(ready, append)
      end
      waiting[id] = nil
    end
  end
  window.gap = placed < #appends
end

-- A window is heavy if it may hold more than one reply of a script should (messages_list.lua).
local MOST_LIGHT_BYTES = 1572864

-- store(window, state_key, set, head, version, ttl_ms, most): trim the set to `most`, write the state.
-- `head` is the run of the server and the fill id.
local function store(window, state_key, set, head, version, ttl_ms, most)
  local count = redis.call('ZCARD', set)
  local surplus = count - tonumber(most)
  if surplus > 0 then
    count = count - redis.call('ZREMRANGEBYRANK', set, 0, surplus - 1)
    window.complete = false
  end
  local tail = window.tail and string.format('%.0f', window.tail) or ''
  local heavy = window.heavy or (window.longest or 0) * most > MOST_LIGHT_BYTES
  local complete = (window.complete and 1 or 0) + (heavy and 2 or 0)
  local parts = {version, window.since, tail, count, complete, window.gap and 1 or 0, set}
  redis.call('SET', state_key, head .. table.concat(parts, ':'), 'PX', ttl_ms)
  redis.call('PEXPIRE', set, ttl_ms)
end

-- granted(lease): when its holder's load began, us.
local function granted(lease)
  return string.sub(lease, 10, 25)
end

-- has_aside(lease): whether appends are kept aside for its holder. with_aside(lease): the flag that says so.
local function has_aside(lease)
  return string.sub(lease, 9, 9) >= '2'
end

local function with_aside(lease)
  local flag = string.sub(lease, 9, 9)
  return (flag == '1' or flag == '3') and '3' or '2'
end
