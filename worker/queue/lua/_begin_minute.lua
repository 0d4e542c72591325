-- Shared step: begin a minute of a series. Needs types before it, and is included in _series.lua.
local KEEP_MINUTES_MS, MOST_SERIES, KEEP_MINUTES = 90000000, 128, 43200

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

-- Begin a minute of a series, whose last one was another, or nil. returns the series to count in
local function series_of(store, series, other, minute, last)
  local base = store.base
  if last then
    close_minute(base, series, math.floor(last))
  elseif series ~= other and not make_room(store, minute) then
    local last_other = number_of(redis.call('ZSCORE', base, other))
    return last_other == minute and other or series_of(store, other, other, minute, last_other)
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
