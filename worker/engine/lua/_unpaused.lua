-- Shared step: what a pause keeps from being claimed. It is included in poll.lua, and sets is_paused and unpaused_in.
--@include function_in

-- Whether a pause keeps a job from being claimed. One with an abort mark is claimed to be ended.
-- returns false | true: its priority is paused | the name of its paused function
is_paused = function(id, number)
  if marked and redis.call('ZSCORE', KEYS[7], id) then
    return false
  end
  local name = pauses.functions and function_in(prefix .. 'job:' .. id)
  return pauses.queues[number] or name and pauses.functions[name] and name or false
end

local function aborted_in(number)
  local found = {}
  for _, id in ipairs(marked and redis.call('ZRANGE', KEYS[7], 0, 999) or {}) do
    local due = redis.call('ZSCORE', KEYS[number], id)
    if due and tonumber(due) <= now then
      found[#found + 1], found[#found + 2] = id, due
    end
  end
  return found
end

-- The first due jobs of a queue that no pause holds; those of paused functions are moved out of their way.
local function unpaused(number, most)
  local found, queue, moved = {}, KEYS[number], nil
  repeat
    local at = #found / 2
    local page = redis.call('ZRANGEBYSCORE', queue, '-inf', now, 'WITHSCORES', 'LIMIT', at, math.max(100, most - at))
    local rows = {}
    moved = 0
    for i = 1, #page, 2 do
      local id, due = page[i], page[i + 1]
      local name = is_paused(id, number)
      if name then
        local of = rows[name] or {}
        of[#of + 1], of[#of + 2], rows[name], moved = due, id, of, moved + 1
      else
        found[#found + 1], found[#found + 2] = id, due
      end
    end
    for name, of in pairs(rows) do
      --@include hold
      hold(queue, name, of)
    end
    room_to_hold = room_to_hold - moved
  until moved == 0 or #found >= 2 * most or room_to_hold <= 0
  return found
end

-- returns {id, due, ...} of a queue's due jobs that no pause holds, by their due times
unpaused_in = function(number, most)
  if pauses.queues[number] then
    return aborted_in(number)
  elseif pauses.functions then
    return unpaused(number, most)
  end
  return redis.call('ZRANGEBYSCORE', KEYS[number], '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
end
