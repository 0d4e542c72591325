-- Shared step: keys whose type somebody else has changed. A script checks all that it will write
-- before it writes anything, so that no type ends it half way.

-- Refuse to begin: each key must be of this type, or absent.
-- By what counts its elements: TYPE, whose reply is a table, costs a script more than twice as much.
local COUNTS = {zset = 'ZCARD', hash = 'HLEN', list = 'LLEN', set = 'SCARD'}
local function expect(kind, ...)
  local count, keys = COUNTS[kind], {...}
  for i = 1, #keys do
    if type(redis.pcall(count, keys[i])) ~= 'number' then
      error({err = 'WRONGTYPE ' .. keys[i] .. ' is not a ' .. kind})
    end
  end
end

-- A string's value; false where there is none, or a key of another type.
local function text_of(key)
  local value = redis.pcall('GET', key)
  return type(value) == 'string' and value
end

-- A hash's fields; all false where there is none, or a key of another type.
local function fields_of(key, ...)
  local row = redis.pcall('HMGET', key, ...)
  return row.err and {} or row
end

local function fits(kind, key)
  return type(redis.pcall(COUNTS[kind], key)) == 'number'
end

-- A number that came as text, whole or not, from 0 to 2^53; else the fallback.
local function number_of(text, fallback)
  local value = tonumber(text or nil)
  return value and value >= 0 and value <= 9007199254740992 and value or fallback
end
