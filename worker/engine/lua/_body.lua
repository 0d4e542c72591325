-- Shared step: read a job's body for a row of a claim. Needs types before it.
-- returns the body | false: absent | -1: a key of another type | -2: over the size limit of bodies
--   | -3: it is large, or much was read before it: a plain GET reads it, which does not hold the server
local MOST_BODY_BYTES, LARGE = 67108864, 262144
-- Our clients write et first, with this byte before its text, and no TTL. Stock clients write it last, and
-- set a TTL, at whose end the body must not vanish while the job runs.
local ET_FIRST = 162
local inline_left = 524288
local function body_of(key)
  local most, size = inline_left < LARGE and inline_left or LARGE, nil
  -- An error here would lose all claims of the poll.
  local body = redis.pcall('GETRANGE', key, '0', most)
  if type(body) ~= 'string' then
    allowed(body)
    return -1
  end
  size = #body
  inline_left = size < inline_left and inline_left - size or 0
  if size > most then
    if redis.call('STRLEN', key) > MOST_BODY_BYTES then
      return -2
    end
    redis.call('PERSIST', key)
    return -3
  elseif body == '' then
    return redis.call('EXISTS', key) == 1 and body
  elseif string.byte(body, 2) ~= ET_FIRST then
    redis.call('PERSIST', key)
  end
  return body
end
