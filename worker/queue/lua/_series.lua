-- Shared step: count ends in series, by minute, hour and in all. Needs types before it.
-- A row of counts belongs to a series: one for each minute, each hour, and all time (worker/queue/series.py
-- reads them). The sorted set `base` maps a series to the minute that is counted in now. Only the row of that
-- minute is written; it is added to its hour and to the total when another minute begins.
-- store: {base: its name, idle: minutes without an end after which a new series may take its place}
-- A count that cannot be written is left out: it must not hold up what ends.
local ROW, KEEP_MS, KEEP_MINUTES_MS = 208, 2678400000, 90000000
local MOST_SERIES, KEEP_MINUTES = 128, 43200
-- Number of an outcome, and the first cell of each part of a row, in numbers of 32 bits.
local LAPSED = 7
local OUTCOME, RUN, WAIT = 3, 12, 32

-- Kept between the series of a call: making a text or a table takes longer than counting in a cell.
local offsets, incrby = {}, {'OVERFLOW', 'SAT'}

-- cells: cell -> number to add to it. The first two are sums, of 64 bits; the others have 32, and 4 is the first.
local function add_to(key, row, cells)
  local n, sums_at, cells_at = 2, row * ROW / 8, row * ROW / 4
  for cell, count in pairs(cells) do
    local at = (cell < 2 and sums_at or cells_at) + cell
    local text = offsets[at]
    if not text then
      text = '#' .. at
      offsets[at] = text
    end
    incrby[n + 1], incrby[n + 2], incrby[n + 3], incrby[n + 4] = 'INCRBY', cell < 2 and 'i64' or 'u32', text, count
    n = n + 4
  end
  redis.pcall('BITFIELD', key, unpack(incrby, 1, n))
end

local function minutes_key(base, series, minute)
  return base .. '-minutes:' .. math.floor(minute / 60) .. ':' .. series
end

local function hours_key(base, series, minute)
  return base .. '-hours:' .. math.floor(minute / 1440) .. ':' .. series
end

-- Add the row of a minute to its hour and to the total.
local function close_minute(base, series, minute)
  local key, at = minutes_key(base, series, minute), minute % 60 * ROW
  local row = redis.pcall('GETRANGE', key, at, at + ROW - 1)
  if type(row) ~= 'string' or #row < ROW then
    return
  end
  local found, cells = {struct.unpack('>I8I8' .. string.rep('I4', ROW / 4 - 4), row)}, {}
  for i = 1, #found - 1 do
    if found[i] > 0 then
      cells[i <= 2 and i - 1 or i + 1] = found[i]
    end
  end
  if next(cells) then
    local total, hours = base .. '-total:' .. series, hours_key(base, series, minute)
    add_to(total, 0, cells)
    add_to(hours, math.floor(minute / 60) % 24, cells)
    redis.call('PEXPIRE', total, KEEP_MS)
    redis.call('PEXPIRE', hours, KEEP_MS)
  end
  redis.call('PEXPIRE', key, KEEP_MINUTES_MS)
end

-- Make room for a new series. returns whether there is room
local function make_room(store, minute)
  redis.call('ZREMRANGEBYSCORE', store.base, '-inf', minute - KEEP_MINUTES)
  if redis.call('ZCARD', store.base) < MOST_SERIES then
    return true
  end
  local series, last = unpack(redis.call('ZRANGE', store.base, 0, 0, 'WITHSCORES'))
  last = number_of(last, 0)
  if last > minute - store.idle then
    return false
  end
  -- With its keys, so that all series together stay within the bound of docs/keys.md.
  local keys = {store.base .. '-total:' .. series}
  for hour = 0, 25 do
    keys[#keys + 1] = minutes_key(store.base, series, last - 60 * hour)
  end
  for day = 0, 31 do
    keys[#keys + 1] = hours_key(store.base, series, last - 1440 * day)
  end
  redis.call('DEL', unpack(keys))
  redis.call('ZREM', store.base, series)
  return true
end

-- Begin a minute of a series, whose last one was `last`, or nil. returns the series to count in
local function series_of(store, series, other, minute, last)
  local base = store.base
  if last == minute then
    return series
  elseif last then
    close_minute(base, series, math.floor(last))
  elseif series ~= other and not make_room(store, minute) then
    return series_of(store, other, other, minute, number_of(redis.call('ZSCORE', base, other)))
  end
  -- A clock that was set back comes to minutes that were added to their hour already.
  local key = minutes_key(base, series, minute)
  redis.pcall('SETRANGE', key, minute % 60 * ROW, string.rep('\0', ROW))
  -- The last minute is needed until the next one begins.
  redis.call('PEXPIRE', key, KEEP_MS)
  redis.call('ZADD', base, minute, series)
  redis.call('PEXPIRE', base, KEEP_MS)
  return series
end

-- Add equal ends to the cells of a row.
-- run, wait: their buckets; a run of -1: none ran  run_us, wait_us: of all of them
local function collect(cells, ends, outcome, lapsed, run, wait, run_us, wait_us)
  if outcome > 0 then
    cells[OUTCOME + outcome] = (cells[OUTCOME + outcome] or 0) + ends
  end
  if lapsed > 0 then
    cells[OUTCOME + LAPSED] = (cells[OUTCOME + LAPSED] or 0) + ends * lapsed
  end
  if run >= 0 then
    cells[RUN + run] = (cells[RUN + run] or 0) + ends
    cells[WAIT + wait] = (cells[WAIT + wait] or 0) + ends
    cells[0], cells[1] = (cells[0] or 0) + math.floor(run_us), (cells[1] or 0) + math.floor(wait_us)
  end
end

-- rows: series -> cells  other_of: function(series): the one that it shares when there are too many
local function count_rows(store, now, rows, other_of)
  local minute, names = math.floor(now / 60000), {}
  for name, cells in pairs(rows) do
    if next(cells) then
      names[#names + 1] = name
    end
  end
  local lasts, new = #names > 0 and redis.pcall('ZMSCORE', store.base, unpack(names)) or {}, {}
  local function count(name, last)
    local series = series_of(store, name, other_of(name), minute, last)
    add_to(minutes_key(store.base, series, minute), minute % 60, rows[name])
  end
  -- A key of another type gives an error, which is no list.
  for i = 1, #lasts do
    if lasts[i] then
      count(names[i], number_of(lasts[i], 0))
    else
      new[#new + 1] = names[i]
    end
  end
  -- After those that have a place, which a new one might take.
  for _, name in ipairs(new) do
    count(name, number_of(redis.call('ZSCORE', store.base, name)))
  end
end
