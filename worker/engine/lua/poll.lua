#!lua flags=allow-oom
-- poll.lua: one poll of a worker: apply the ends of its finished jobs, then claim due jobs.
-- KEYS[1..4] queues critical, high, default, low  KEYS[5] running: id -> lease's end, Unix ms
-- KEYS[6] wake token  KEYS[7] abort marks  KEYS[8] parked: id -> since, Unix ms  KEYS[9] dead: id -> time
-- KEYS[10] last poll of this worker, or of its waker  KEYS[11] schedules: id -> due  KEYS[12] paused
--   and, derived from the prefix: job:<id> in-progress:<id> retry:<id> result:<id> dead:<id>, keys of
--   _series.lua, unique keys that the ends name; from the queues: <queue>:held:<function>
-- ARGV[1] prefix  ARGV[2] this poll's token, never used before: "<run of a worker>:<number>"  ARGV[3] lease_ms
-- ARGV[4] most jobs to claim (<= 256)  ARGV[5] jobs claimed before  ARGV[6] ends, msgpack (worker/engine/records.py)
-- ARGV[7] stalled count that makes a job poison  ARGV[8] limit of the dead letters
-- ARGV[9] their age limit, ms  ARGV[10] share of the claims for the job that is due longest, of any queue
-- ARGV[11] most jobs to claim ahead; at most a quarter of the due jobs left (with ARGV[4] <= 512)
-- ARGV[12] 1: return the abort marks | 0
-- ARGV[13] most jobs to claim that one more lost lease makes poison; -1: claim no lapsed job at all, after
--   an outage of the server, in which nobody could renew a lease
-- ARGV[14] 1: another copy of this poll may still arrive, and must then change nothing | 0
-- ARGV[15] the ends in groups for the history, msgpack (_history.lua); an end names its group by number
-- ARGV[16..] keys of large results and bodies that the ends name: they were sent before (_put_job.lua)
-- returns {now, next due | -1, 1: more jobs are due | 0, jobs in the queues, 1: a schedule is due | 0,
--          {index of an end whose claim was lost, ...}, {index of an end that became a dead letter, ...},
--          {id of poison, ...}, {id, since, ...} abort marks, rows of 5: id, body (_body.lua), tries, claim, mark,
--          dead letters deleted to make room}
-- Claim: "token|queue number|due|stalled count" in in-progress:<id>. It is the fencing token: only its
-- holder may end the job. A poll that is sent again (its reply was lost) changes nothing and returns the
-- same rows; one that arrives after a later poll of its run changes nothing and returns none.
-- allow-oom: a full server must be able to finish jobs, which frees memory.
--@include types
--@include put_job
--@include body
--@include lease
--@include dead
--@include ends
--@include series
--@include history
--@include held
--@include pauses
local prefix, token, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
local want, poison, ahead = tonumber(ARGV[4]), tonumber(ARGV[7]), tonumber(ARGV[11])
local last_chance, stalled_jobs = math.max(1, poison - 1), tonumber(ARGV[13])
local STALLED_WAITS_MS = math.min(1000, lease / 5)
local RUNNING_KEY_MS = tostring(lease + 86400000)
local held, room_to_hold, may_halt = 0, MOST_HELD, 100
local now = server_ms()
local marked, pauses = false, nil
local dead = {set = KEYS[9], prefix = prefix, cap = tonumber(ARGV[8]), age = tonumber(ARGV[9]), now = now,
  queues = KEYS, dropped = 0}
local late, buried, poisoned, rows, claimed = {}, {}, {}, {}, {}
local due_counts = {}  -- by queue, before this poll changes anything
local ends = cmsgpack.unpack(ARGV[6])
local groups = #ends > 0 and cmsgpack.unpack(ARGV[15]) or {}

-- Return the number of a queue's due jobs; fail if it is no queue.
local function expect_due(key)
  local count = allowed(redis.pcall('ZCOUNT', key, '-inf', now))
  if type(count) ~= 'number' then
    error({err = 'WRONGTYPE ' .. key .. ' is not a zset'})
  end
  return count
end

local function names(kind, ids)
  local keys = {}
  for i = 1, #ids do
    keys[i] = prefix .. kind .. ids[i]
  end
  return keys
end

local function add_rows(ids, claims)
  local tries = redis.call('MGET', unpack(names('retry:', ids)))
  local marks = marked and redis.call('ZMSCORE', KEYS[7], unpack(ids)) or {}
  for i = 1, #ids do
    local at = #rows
    rows[at + 1], rows[at + 2] = ids[i], body_of(prefix .. 'job:' .. ids[i])
    rows[at + 3], rows[at + 4], rows[at + 5] = tries[i], claims[i], marks[i] or false
  end
end

-- returns the name of a job's function | '<unknown>'
local function function_in(key)
  -- A body is a map that begins with t, tries, f, name, or et and a time before them; its arguments may be large.
  local head, ok, field, name, _ = allowed(redis.pcall('GETRANGE', key, 0, 1023)), nil, nil, nil, nil
  if type(head) ~= 'string' then
    return '<unknown>'
  elseif string.byte(head, 2) == ET_FIRST then
    ok, _, _, _, _, _, field, name = pcall(cmsgpack.unpack_limit, head, 6, 1)
  else
    ok, _, _, _, field, name = pcall(cmsgpack.unpack_limit, head, 4, 1)
  end
  return ok and field == 'f' and type(name) == 'string' and #name <= 256 and name or '<unknown>'
end

-- returns by number of a group: its ends that were late, or that the server made dead letters of
local function not_as_grouped()
  local lost = {}
  local function lose(i)
    local group = ends[i][6]
    if group then
      lost[group] = (lost[group] or 0) + 1
    end
    return group
  end
  for _, i in ipairs(late) do
    lose(i)
  end
  for _, i in ipairs(buried) do
    local group = ends[i][1] == 'park' and lose(i)
    if group then
      groups[#groups + 1] = {groups[group][1], groups[group][2], DEAD, groups[group][4], 1, -1, 0, 0, 0}
    end
  end
  return lost
end

-- A due job may still run: an abort moved it, or a stock worker holds it.
local function still_held(id, claim, queue)
  -- A stock worker's claim has a TTL; a claim without one has no owner.
  if not string.find(claim, '|', 1, true) and redis.call('PTTL', prefix .. 'in-progress:' .. id) > 0 then
    redis.call('ZADD', queue, 'XX', now + 1000, id)
    return true
  end
  local ends = redis.call('ZSCORE', KEYS[5], id)
  if ends and tonumber(ends) > now then
    redis.call('ZADD', queue, 'XX', ends, id)
    return true
  end
  return false
end

-- candidates: list of {id, queue number, due, lapsed claim | nil}
local function claim(candidates)
  if #candidates == 0 then
    return
  end
  local taken, claims, running, moved = {}, {}, {}, {{}, {}, {}, {}}
  local ids, seen = {}, {}
  for i, c in ipairs(candidates) do
    ids[i] = c[1]
  end
  -- A key of another type is not a claim. The claims of lapsed jobs are known.
  local holders = candidates[1][4] and {} or redis.call('MGET', unpack(names('in-progress:', ids)))
  -- Converting a number to text is slow, so do it once.
  local lease_ends, queued_till = tostring(now + lease), tostring(now + 2 * lease)
  for i, c in ipairs(candidates) do
    local id, number, due, held, stalled = c[1], c[2], number_of(c[3]) and c[3] or '0', c[4], 0
    local free = true
    local value = token .. '|' .. number .. '|' .. due .. '|'
    if not held then
      held = holders[i]
      free = not (seen[id] or held and still_held(id, held, KEYS[number]))
    end
    seen[id] = true
    if held then
      local was = string.match(held, '|(%d+)$')
      stalled = math.min(tonumber(was) or 0, 1000) + 1
    end
    if free and held and stalled_jobs < 0 then
      redis.call('ZADD', KEYS[number], 'XX', now + STALLED_WAITS_MS, id)
    elseif free and stalled >= poison then
      poisoned[#poisoned + 1] = id
      groups[#groups + 1] = {number, function_in(prefix .. 'job:' .. id), DEAD, stalled, 1, -1, 0, 0, 0}
      bury(dead, id, {reason = 'poison', queue = number, tries = stalled, error = 'its workers died while it ran'})
      -- Its place among the running jobs goes last: it is what finds the job again.
      redis.call('DEL', prefix .. 'job:' .. id, prefix .. 'in-progress:' .. id)
      forget(prefix, KEYS, {id}, {{id}, {id}, {id}, {id}})
    elseif free and stalled >= last_chance and stalled_jobs <= 0 then
      -- When a worker dies, all its stalled jobs are charged: two would be charged for one's crash.
      redis.call('ZADD', KEYS[5], 'XX', now + STALLED_WAITS_MS, id)
      redis.call('ZADD', KEYS[number], 'XX', now + STALLED_WAITS_MS, id)
    elseif free then
      if stalled >= last_chance then
        stalled_jobs = stalled_jobs - 1
      end
      local holds = lease_of(lease, stalled)
      local n = #taken + 1
      taken[n], claims[n] = id, value .. stalled
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
    for n, id in ipairs(taken) do
      redis.call('SET', prefix .. 'in-progress:' .. id, claims[n], 'PX', RUNNING_KEY_MS)
    end
  end
end

-- Whether a pause keeps a job from being claimed. One with an abort mark is claimed to be ended.
-- returns false | true: its priority is paused | the name of its paused function
local function is_paused(id, number)
  if not pauses or marked and redis.call('ZSCORE', KEYS[7], id) then
    return false
  end
  local name = pauses.functions and function_in(prefix .. 'job:' .. id)
  return pauses.queues[number] or name and pauses.functions[name] and name or false
end

local function lapsed(most)
  local found, halted, ids = {}, 0, redis.call('ZRANGEBYSCORE', KEYS[5], '-inf', now, 'LIMIT', 0, most)
  if #ids > 0 and #ends == 0 then
    expect('zset', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
  end
  for _, id in ipairs(ids) do
    local value = text_of(prefix .. 'in-progress:' .. id)
    local number, due = string.match(value or '', '|([1-4])|([^|]*)|%d+$')
    if number and is_paused(id, tonumber(number)) then
      halted, may_halt = halted + 1, may_halt - 1
      put_back(prefix, KEYS, tonumber(number), id, number_of(due) and due or '0')
    elseif number then
      found[#found + 1] = {id, tonumber(number), due, value}
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
      hold(queue, name, of)
    end
    room_to_hold = room_to_hold - moved
  until moved == 0 or #found >= 2 * most or room_to_hold <= 0
  return found
end

-- returns {id, due, ...} of a queue's due jobs, by their due times
local function due_in(number, most)
  if pauses and pauses.queues[number] then
    return aborted_in(number)
  elseif pauses and pauses.functions then
    return unpaused(number, most)
  end
  return redis.call('ZRANGEBYSCORE', KEYS[number], '-inf', now, 'WITHSCORES', 'LIMIT', 0, most)
end

-- By priority, except for a share of the claims that goes by age alone, so that no queue starves.
-- The share holds over time, even with one claim per poll.
local function due_jobs(most)
  local before, share = tonumber(ARGV[5]) + #claimed, tonumber(ARGV[10])
  local reserved = math.floor((before + most) * share) - math.floor(before * share)
  local lists, at, picked = {}, {1, 1, 1, 1}, {}
  for number = 1, 4 do
    lists[number] = due_in(number, most)
  end
  local function take(number)
    local list, i = lists[number], at[number]
    picked[#picked + 1] = {list[i], number, list[i + 1]}
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

-- returns "<run>", number
local function split_token(other)
  local run, number = string.match(other, '^(.*):(%d+)$')
  return run, tonumber(number)
end

local function is_before(other)
  local run, number = split_token(token)
  local other_run, other_number = split_token(other)
  return run == other_run and number < other_number
end

-- returns {token, claimed, late, poisoned}; nil when none is stored, or it cannot be read
local function last_poll(key)
  local ok, last = pcall(cmsgpack.unpack, text_of(key) or '')
  local is_poll = ok and type(last) == 'table' and type(last[1]) == 'string'
  return is_poll and type(last[2]) == 'table' and type(last[3]) == 'table' and type(last[4]) == 'table' and last or nil
end

-- Most polls of an idle worker find no job at all.
local busy = #ends > 0
  or redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[11]) > 0
if busy then
  -- One command for both: most of the time there is neither.
  if redis.call('EXISTS', KEYS[7], KEYS[12]) > 0 then
    marked, pauses = redis.call('EXISTS', KEYS[7]) == 1, pauses_of(KEYS[12])
  end
  expect('zset', KEYS[6], KEYS[9], KEYS[11])
  expect('hash', KEYS[8])
  if marked then
    expect('zset', KEYS[7])
  end
  if #ends > 0 or pauses then
    -- Once ends are applied or jobs are held, nothing after them may fail.
    expect('zset', KEYS[5])
  end
  for number = 1, (#ends > 0 or pauses or ahead > 0) and 4 or 0 do
    due_counts[number] = expect_due(KEYS[number])
  end
  for number = 1, pauses and 4 or 0 do
    held = held + redis.call('ZCOUNT', KEYS[number], HELD, '+inf')
  end
end
local again = last_poll(KEYS[10])
if again and again[1] == token then
  local ids, claims = {}, {}
  for _, id in ipairs(again[2]) do
    local value = text_of(prefix .. 'in-progress:' .. id)
    if value and string.sub(value, 1, #token + 1) == token .. '|' then
      ids[#ids + 1], claims[#claims + 1] = id, value
    end
  end
  if #ids > 0 then
    add_rows(ids, claims)
  end
  late, poisoned = again[3], again[4]
elseif not (again and is_before(again[1])) then
  for i = 16, #ARGV do
    expect_staged({ARGV[i]})
  end
  if #ends > 0 then
    apply_ends(ends, prefix, KEYS, dead, late, buried)
  end
  if #groups > 0 then
    count_ends(prefix, now, groups, not_as_grouped())
    groups = {}
  end
  if pauses and pauses.back then
    held = held - give_back(KEYS[12], KEYS, pauses.back, MOST_HELD)
  end
  if want + ahead > 0 and busy then
    local rest, found, halted = want, {}, 0
    -- Claim lapsed jobs only into free slots, never ahead.
    while rest > 0 and stalled_jobs >= 0 do
      found, halted = lapsed(rest)
      claim(found)
      rest = want - #claimed - #poisoned
      if #found == 0 and (halted == 0 or may_halt <= 0) then
        break
      end
    end
    local most = with_ahead(math.max(0, rest))
    if most > 0 then
      claim(due_jobs(most))
    end
  end
  if #groups > 0 then
    count_ends(prefix, now, groups, {})
  end
  if #claimed > 0 or #ends > 0 or #poisoned > 0 or ARGV[14] == '1' then
    redis.call('SET', KEYS[10], cmsgpack.pack({token, claimed, late, poisoned}), 'PX', 4 * lease + 60000)
  end
end

if not busy then
  return {now, -1, 0, 0, 0, late, buried, poisoned, {}, rows, dead.dropped}
end
local next_due, more, size = -1, 0, 0
-- returns whether the first entry is due | nil: there is none
local function look(key)
  -- No command comes after the claims that does not come before them: one that is denied would leave them.
  local head = redis.call('ZRANGEBYSCORE', key, '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  local due = tonumber(head[2])
  if due and due > now and (next_due < 0 or due < next_due) then
    next_due = due
  end
  return due and due <= now
end
for number = 1, 4 do
  local is_due
  if not (pauses and pauses.queues[number]) then
    is_due = look(KEYS[number])
  end
  if is_due then
    more = 1
  end
  if is_due ~= nil then
    size = size + redis.call('ZCARD', KEYS[number])
  end
end
-- Held jobs, those of this poll included, keep no burst from its end.
size = math.max(0, size - held - (MOST_HELD - room_to_hold))
if look(KEYS[5]) then
  more = 1
end
local scheduled = look(KEYS[11]) and 1 or 0  -- the ends of this poll may have added one
if more == 1 then
  redis.call('ZADD', KEYS[6], 0, 'w')
end
local marks = marked and ARGV[12] == '1'
  and redis.call('ZRANGEBYSCORE', KEYS[7], '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 1000) or {}
return {now, math.ceil(next_due), more, size, scheduled, late, buried, poisoned, marks, rows, dead.dropped}
