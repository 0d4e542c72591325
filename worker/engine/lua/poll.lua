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
--@include body
--@include held
local prefix, token, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
local want, poison, ahead = tonumber(ARGV[4]), tonumber(ARGV[7]), tonumber(ARGV[11])
local last_chance, stalled_jobs = math.max(1, poison - 1), tonumber(ARGV[13])
local STALLED_WAITS_MS = math.min(1000, lease / 5)
local RUNNING_KEY_MS = tostring(lease + 86400000)
local held, room_to_hold, may_halt = 0, MOST_HELD, 100
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local marked, pauses = false, nil
local dead = {set = KEYS[9], prefix = prefix, cap = tonumber(ARGV[8]), age = tonumber(ARGV[9]), now = now,
  queues = KEYS, dropped = 0}
local late, buried, poisoned, rows, claimed = {}, {}, {}, {}, {}
local sizes, due_counts = {}, {0, 0, 0, 0}  -- by queue, before this poll changes anything
local added = false  -- this poll may put jobs into a queue
local ends = cmsgpack.unpack(ARGV[6])
local groups = #ends > 0 and cmsgpack.unpack(ARGV[15]) or {}

-- Made by the first job that needs it.
local bury_one
local function bury_dead(id, why)
  if not bury_one then
    --@include dead
    bury_one = bury
  end
  bury_one(dead, id, why)
end

local function count(lost)
  --@include collect
  --@include series
  --@include history
  count_ends(prefix, now, groups, lost)
end

-- Most deployments use one or two of the four queues.
local function is_unused(number)
  return sizes[number] == 0 and not added
end

-- Tokens: "<run>:<number>".
local function is_before(other)
  local run, number = string.match(token, '^(.*):(%d+)$')
  local other_run, other_number = string.match(other, '^(.*):(%d+)$')
  return run == other_run and tonumber(number) < tonumber(other_number)
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
  -- Once ends are applied or jobs are held, nothing after them may fail, so all types are checked here.
  -- One command for five keys: most of the time there is none of them.
  if redis.call('EXISTS', KEYS[7], KEYS[8], KEYS[9], KEYS[11], KEYS[12]) > 0 then
    expect('zset', KEYS[9], KEYS[11])
    expect('hash', KEYS[8])
    if redis.call('EXISTS', KEYS[7], KEYS[12]) > 0 then
      --@include pauses
      marked, pauses = redis.call('EXISTS', KEYS[7]) == 1, pauses_of(KEYS[12])
      added = pauses ~= nil
    end
  end
  if marked then
    expect('zset', KEYS[7])
  end
  if #ends > 0 or pauses then
    expect('zset', KEYS[5])
  end
  for number = 1, 4 do
    sizes[number] = expect('zset', KEYS[number])
    if ahead > 0 and sizes[number] > 0 then
      due_counts[number] = redis.call('ZCOUNT', KEYS[number], '-inf', now)
    end
  end
  for number = 1, pauses and 4 or 0 do
    held = held + redis.call('ZCOUNT', KEYS[number], HELD, '+inf')
  end
end
local again = last_poll(KEYS[10])
if again and again[1] == token then
  --@include rows
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
  if #ARGV >= 16 then
    --@include expect_staged
    for i = 16, #ARGV do
      expect_staged({ARGV[i]})
    end
  end
  if #ends > 0 then
    --@include ends
    added = apply_ends(ends, prefix, KEYS, dead, late, buried) or added
  end
  if #groups > 0 then
    local lost = {}
    if #late + #buried > 0 then
      --@include not_as_grouped
      lost = not_as_grouped()
    end
    count(lost)
    groups = {}
  end
  if pauses and pauses.back then
    --@include give_back
    held = held - give_back(KEYS[12], KEYS, pauses.back, MOST_HELD)
  end
  if want + ahead > 0 and busy then
    --@include claims
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
    count({})
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
  if not is_unused(number) and not (pauses and pauses.queues[number]) then
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
  -- Where the wake token is of another type, workers find their jobs by polling.
  allowed(redis.pcall('ZADD', KEYS[6], 0, 'w'))
end
local marks = marked and ARGV[12] == '1'
  and redis.call('ZRANGEBYSCORE', KEYS[7], '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 1000) or {}
return {now, math.ceil(next_due), more, size, scheduled, late, buried, poisoned, marks, rows, dead.dropped}
