-- Shared step: count how jobs ended, by function, priority and time. Needs types before it.
-- A row of counts belongs to a series, "<priority>:<function>": one for each minute, each hour, and all time
-- (worker/queue/series.py reads them). `history` maps a series to the minute that is counted in now. Only the
-- row of that minute is written; it is added to its hour and to the total when another minute begins.
-- A count that cannot be written is left out: it must not hold up the end of a job.
local ROW, KEEP_MS, KEEP_MINUTES_MS = 208, 2678400000, 90000000
local MOST_SERIES, KEEP_MINUTES = 128, 43200
local PRIORITIES = {'critical', 'high', 'default', 'low'}
-- Numbers of two outcomes, and the first cell of each part of a row, in numbers of 32 bits.
local DEAD, LAPSED = 3, 7
local OUTCOME, RUN, WAIT = 3, 12, 32

-- Each step is {width, cell, number}; cells are counted in that width.
local function add_to(key, row, steps)
  local args = {}
  for i, s in ipairs(steps) do
    local per_row = s[1] == 'u32' and ROW / 4 or ROW / 8
    args[4 * i - 3], args[4 * i - 2] = 'INCRBY', s[1]
    args[4 * i - 1], args[4 * i] = '#' .. row * per_row + s[2], s[3]
  end
  redis.pcall('BITFIELD', key, 'OVERFLOW', 'SAT', unpack(args))
end

local function minutes_key(prefix, series, minute)
  return prefix .. 'history-minutes:' .. math.floor(minute / 60) .. ':' .. series
end

-- Add the row of a minute to its hour and to the total.
local function close_minute(prefix, series, minute)
  local key, at = minutes_key(prefix, series, minute), minute % 60 * ROW
  local row = redis.pcall('GETRANGE', key, at, at + ROW - 1)
  if type(row) ~= 'string' or #row < ROW then
    return
  end
  local cells, steps = {struct.unpack('>I8I8' .. string.rep('I4', ROW / 4 - 4), row)}, {}
  for i = 1, #cells - 1 do
    if cells[i] > 0 then
      steps[#steps + 1] = i <= 2 and {'i64', i - 1, cells[i]} or {'u32', i + 1, cells[i]}
    end
  end
  if #steps > 0 then
    local hour = math.floor(minute / 60)
    local total, hours = prefix .. 'history-total:' .. series, prefix .. 'history-hours:' .. math.floor(hour / 24) .. ':' .. series
    add_to(total, 0, steps)
    add_to(hours, hour % 24, steps)
    redis.call('PEXPIRE', total, KEEP_MS)
    redis.call('PEXPIRE', hours, KEEP_MS)
  end
  redis.call('PEXPIRE', key, KEEP_MINUTES_MS)
end

-- Begin a minute of a series. returns the series to count in | nil: none can be
local function series_of(prefix, priority, name, minute)
  local set, series = prefix .. 'history', priority .. ':' .. name
  local found = redis.pcall('ZSCORE', set, series)
  if type(found) == 'table' then
    return nil
  end
  local last = number_of(found)
  if last == minute then
    return series
  elseif last then
    close_minute(prefix, series, math.floor(last))
  else
    redis.call('ZREMRANGEBYSCORE', set, '-inf', minute - KEEP_MINUTES)
    if name ~= '<other>' and redis.call('ZCARD', set) >= MOST_SERIES then
      return series_of(prefix, priority, '<other>', minute)
    end
  end
  -- A clock that was set back comes to minutes that were added to their hour already.
  local key = minutes_key(prefix, series, minute)
  redis.pcall('SETRANGE', key, minute % 60 * ROW, string.rep('\0', ROW))
  -- The last minute is needed until the next one begins.
  redis.call('PEXPIRE', key, KEEP_MS)
  redis.call('ZADD', set, minute, series)
  redis.call('PEXPIRE', set, KEEP_MS)
  return series
end

-- Collect a group's ends in the sums (64 bits) and the cells (32 bits) of its series.
local function collect(sums, cells, g, ends)
  local function add(to, cell, n)
    to[cell] = (to[cell] or 0) + n
  end
  if g[3] > 0 then
    add(cells, OUTCOME + g[3], ends)
  end
  if g[4] > 0 then
    add(cells, OUTCOME + LAPSED, ends * g[4])
  end
  if g[6] >= 0 then
    add(cells, RUN + g[6], ends)
    add(cells, WAIT + g[7], ends)
    add(sums, 0, math.floor(g[8] * ends / g[5]))
    add(sums, 1, math.floor(g[9] * ends / g[5]))
  end
end

-- groups: of equal ends: {priority number, function, outcome number | 0, lapsed leases of each, ends,
--   run bucket | -1: none ran, wait bucket, us of all runs, us of all waits}
-- lost: number of a group -> ends of it that do not count
local function count_ends(prefix, now, groups, lost)
  local minute, all = math.floor(now / 60000), {}
  for i, g in ipairs(groups) do
    local ends, name = g[5] - (lost[i] or 0), g[1] .. g[2]
    if ends > 0 then
      all[name] = all[name] or {g[1], g[2], {}, {}}
      collect(all[name][3], all[name][4], g, ends)
    end
  end
  for _, found in pairs(all) do
    local steps = {}
    for cell, n in pairs(found[3]) do
      steps[#steps + 1] = {'i64', cell, n}
    end
    for cell, n in pairs(found[4]) do
      steps[#steps + 1] = {'u32', cell, n}
    end
    local series = #steps > 0 and series_of(prefix, PRIORITIES[found[1]], found[2], minute)
    if series then
      add_to(minutes_key(prefix, series, minute), minute % 60, steps)
    end
  end
end
