-- Shared step: count ends in series, by minute, hour and in all. Needs types before it.
-- A row of counts belongs to a series: one for each minute, each hour, and all time (worker/queue/series.py
-- reads them). The sorted set `base` maps a series to the minute that is counted in now. Only the row of that
-- minute is written; it is added to its hour and to the total when another minute begins.
-- A count that cannot be written is left out: it must not hold up what ends.
local ROW, KEEP_MS = 208, 2678400000

local function minutes_key(base, series, minute)
  return base .. '-minutes:' .. math.floor(minute / 60) .. ':' .. series
end

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

-- store: {base: its name, idle: minutes without an end after which a new series may take its place}
-- rows: series -> cells  other_of: function(series): the one that it shares when there are too many
local function count_rows(store, now, rows, other_of)
  local minute, names, begin_minute = math.floor(now / 60000), {}, nil
  for name, cells in pairs(rows) do
    if next(cells) then
      names[#names + 1] = name
    end
  end
  local lasts, new = #names > 0 and redis.pcall('ZMSCORE', store.base, unpack(names)) or {}, {}
  local function count(name, last)
    local series = name
    if last ~= minute then
      if not begin_minute then
        --@include begin_minute
        begin_minute = series_of
      end
      series = begin_minute(store, name, other_of(name), minute, last)
    end
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
