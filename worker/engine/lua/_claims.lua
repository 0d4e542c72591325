-- Shared step: find due jobs and claim them. Needs types and held before it, and is included in poll.lua.
--@include rows

local is_paused, unpaused_in
if pauses then
  --@include unpaused
end
local several = false  -- due jobs of several queues are claimed: a job may be in two of them

-- candidates: list of {id, queue number, due, lapsed claim | nil}
local function claim(candidates)
  if #candidates == 0 then
    return
  end
  local taken, taken_keys, claims, running, moved = {}, {}, {}, {}, {{}, {}, {}, {}}
  local keys, seen = {}, {}
  for i = 1, #candidates do
    keys[i] = prefix .. 'in-progress:' .. candidates[i][1]
  end
  -- A key of another type is not a claim. The claims of lapsed jobs are known.
  local holders = candidates[1][4] and {} or redis.call('MGET', unpack(keys))
  -- Converting a number to text is slow, so do it once.
  local lease_ends, queued_till = tostring(now + lease), tostring(now + 2 * lease)
  local heads = {token .. '|1|', token .. '|2|', token .. '|3|', token .. '|4|'}
  for i, c in ipairs(candidates) do
    local id, number, due, held, stalled = c[1], c[2], c[3], c[4], 0
    local free = true
    if not held then
      held = holders[i]
      free = not seen[id]
      if free and held then
        --@include still_held
        free = not still_held(id, held, KEYS[number])
      end
    end
    if several then
      seen[id] = true
    end
    if held then
      local was = string.match(held, '|(%d+)$')
      stalled = math.min(tonumber(was) or 0, 1000) + 1
    end
    if free and held and stalled_jobs < 0 then
      redis.call('ZADD', KEYS[number], 'XX', now + STALLED_WAITS_MS, id)
    elseif free and stalled >= poison then
      --@include function_in
      poisoned[#poisoned + 1] = id
      groups[#groups + 1] = {number, function_in(prefix .. 'job:' .. id), 3, stalled, 1, -1, 0, 0, 0}
      bury_dead(id, {reason = 'poison', queue = number, tries = stalled, error = 'its workers died while it ran'})
      -- Its place among the running jobs goes last: it is what finds the job again.
      redis.call('DEL', prefix .. 'job:' .. id, prefix .. 'in-progress:' .. id)
      --@include forget
      forget(prefix, KEYS, {id}, {{id}, {id}, {id}, {id}})
    elseif free and stalled >= last_chance and stalled_jobs <= 0 then
      -- When a worker dies, all its stalled jobs are charged: two would be charged for one's crash.
      redis.call('ZADD', KEYS[5], 'XX', now + STALLED_WAITS_MS, id)
      redis.call('ZADD', KEYS[number], 'XX', now + STALLED_WAITS_MS, id)
    elseif free then
      if stalled >= last_chance then
        stalled_jobs = stalled_jobs - 1
      end
      local holds = lease
      if stalled > 0 then
        --@include lease
        holds = lease_of(lease, stalled)
      end
      local n = #taken + 1
      taken[n], taken_keys[n], claims[n] = id, keys[i], heads[number] .. due .. (stalled == 0 and '|0' or '|' .. stalled)
      running[2 * n - 1], running[2 * n] = stalled == 0 and lease_ends or now + holds, id
      -- A claimed job stays in its queue, where stock clients look for it, but not at its head.
      local m = moved[number]
      m[#m + 1], m[#m + 2] = stalled == 0 and queued_till or now + holds + lease, id
      claimed[#claimed + 1] = id
    end
  end
  if #taken > 0 then
    redis.call('ZADD', KEYS[5], unpack(running))
    for number = 1, 4 do
      if #moved[number] > 0 then
        redis.call('ZADD', KEYS[number], 'XX', unpack(moved[number]))
      end
    end
    add_rows(taken, claims)
    -- The claims come last: a right to a command may be taken away at any time. A claim without the
    -- writes above would count as a lost lease, and soon make a job poison that never ran.
    local call = redis.call
    for n = 1, #taken do
      call('SET', taken_keys[n], claims[n], 'PX', RUNNING_KEY_MS)
    end
  end
end

local function lapsed(most)
  local found, halted, ids = {}, 0, redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now, 'LIMIT', 0, most)
  for _, id in ipairs(ids) do
    local value = text_of(prefix .. 'in-progress:' .. id)
    local number, due = string.match(value or '', '|([1-4])|([^|]*)|%d+$')
    if number and is_paused and is_paused(id, tonumber(number)) then
      --@include put_back
      halted, may_halt = halted + 1, may_halt - 1
      put_back(prefix, KEYS, tonumber(number), id, number_of(due) and due or '0')
    elseif number then
      found[#found + 1] = {id, tonumber(number), number_of(due) and due or '0', value}
    else
      redis.call('ZREM', KEYS[5], id)
    end
  end
  return found, halted
end

-- Claim ahead at most a quarter of the due jobs left: the rest is for other workers.
local function with_ahead(most)
  if ahead == 0 then
    return most
  end
  local count = 0
  for number = 1, 4 do
    if not (pauses and pauses.queues[number]) then
      count = count + due_counts[number]
    end
  end
  return most + math.min(ahead, math.max(0, math.floor((count - most) / 4)))
end

-- returns {id, due, ...} of a queue's due jobs, by their due times
local function due_in(number, most)
  if is_unused(number) then
    return {}
  elseif pauses then
    return unpaused_in(number, most)
  end
  return redis.call('ZRANGEBYSCORE', KEYS[number], '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
end

local MINUS = 45

-- By priority, except for a share of the claims that goes by age alone, so that no queue starves.
-- The share holds over time, even with one claim per poll.
local function due_jobs(most)
  local before, share = tonumber(ARGV[5]) + #claimed, tonumber(ARGV[10])
  local reserved = math.floor((before + most) * share) - math.floor(before * share)
  local lists, at, picked, full = {}, {1, 1, 1, 1}, {}, 0
  for number = 1, 4 do
    lists[number] = due_in(number, most)
    full = full + (lists[number][1] and 1 or 0)
  end
  several = full > 1
  local function take(number)
    local list, i = lists[number], at[number]
    -- A due score may be negative, down to -inf; a claim names none below 0.
    local due = list[i + 1]
    picked[#picked + 1] = {list[i], number, string.byte(due) == MINUS and '0' or due}
    at[number] = i + 2
  end
  for _ = 1, math.min(reserved, most) do
    local oldest, least
    for number = 1, 4 do
      local score = tonumber(lists[number][at[number] + 1])
      if score and (not least or score < least) then
        oldest, least = number, score
      end
    end
    if not oldest then
      return picked
    end
    take(oldest)
  end
  for number = 1, 4 do
    while #picked < most and lists[number][at[number]] do
      take(number)
    end
  end
  return picked
end
