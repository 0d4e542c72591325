-- Shared step: read a job's body for a row of a claim. Needs types before it.
-- returns the body | false: absent | -1: a key of another type | -2: over the size limit of bodies
--   | -3: it is large, or much was read before it: a plain GET reads it, which does not hold the server
local MOST_BODY_BYTES, LARGE = 67108864, 262144
local inline_left = 524288
local function body_of(key)
  -- An error here would lose all claims of the poll.
  local size = allowed(redis.pcall('STRLEN', key))
  if type(size) ~= 'number' then
    return -1
  elseif size > MOST_BODY_BYTES then
    return -2
  end
  if size > LARGE or size > inline_left then
    redis.call('PERSIST', key)
    return -3
  end
  inline_left = inline_left - size
  -- Stock clients set a TTL on bodies; it must not expire while the job runs.
  return redis.call('GETEX', key, 'PERSIST')
end
