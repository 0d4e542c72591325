-- Shared step: keys whose type somebody else has changed. A script checks all that it will write
-- before it writes anything, so that no type ends it half way.

-- Refuse to begin: each key must be of this type, or absent.
local function expect(kind, ...)
  for _, key in ipairs({...}) do
    local found = redis.call('TYPE', key).ok
    if found ~= kind and found ~= 'none' then
      error({err = 'WRONGTYPE ' .. key .. ' is a ' .. found .. ', not a ' .. kind})
    end
  end
end

-- A string's value; false where there is none, or a key of another type.
local function text_of(key)
  local value = redis.pcall('GET', key)
  return type(value) == 'string' and value
end

-- A number that came as text, whole or not, from 0 to 2^53; else the fallback.
local function number_of(text, fallback)
  local value = tonumber(text or nil)
  return value and value >= 0 and value <= 9007199254740992 and value or fallback
end
