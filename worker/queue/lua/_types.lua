-- Shared step: check the types of keys. A script checks every key that it will write before the
-- first write, so that a key of a wrong type cannot stop it halfway.

-- Return the reply of a pcall, unless it is another error than a key's wrong type. A command that is
-- denied says nothing about the key.
local function allowed(reply)
  if type(reply) == 'table' and reply.err and not string.find(reply.err, 'WRONGTYPE', 1, true) then
    error(reply)
  end
  return reply
end

-- Fail unless each key has this type or is absent; return the size of the last one.
local COUNTS = {zset = 'ZCARD', hash = 'HLEN', list = 'LLEN', set = 'SCARD'}
local function expect(kind, ...)
  local count, keys, size = COUNTS[kind], {...}, nil
  for i = 1, #keys do
    size = allowed(redis.pcall(count, keys[i]))
    if type(size) ~= 'number' then
      error({err = 'WRONGTYPE ' .. keys[i] .. ' is not a ' .. kind})
    end
  end
  return size
end

-- Return a string's value, or false if the key is absent or has another type.
local function text_of(key)
  local value = allowed(redis.pcall('GET', key))
  return type(value) == 'string' and value
end

-- Parse a number from 0 to 2^53, whole or not; return the fallback for anything else.
local function fields_of(key, ...)
  local row = allowed(redis.pcall('HMGET', key, ...))
  return row.err and {} or row
end
local function fits(kind, key)
  return type(allowed(redis.pcall(COUNTS[kind], key))) == 'number'
end
local function number_of(text, fallback)
  local value = tonumber(text or nil)
  return value and value >= 0 and value <= 9007199254740992 and value or fallback
end
