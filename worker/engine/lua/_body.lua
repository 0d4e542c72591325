-- Shared step: read a job's body for a row of a claim. Needs types before it.
-- returns the body | false: absent | -1: a key of another type | -2: over the size limit of bodies
local MOST_BODY_BYTES = 67108864
local function body_of(key)
  -- An error here would lose all claims of the poll.
  local size = redis.pcall('STRLEN', key)
  if type(size) ~= 'number' then
    return -1
  elseif size > MOST_BODY_BYTES then
    return -2
  end
  -- Stock clients set a TTL on bodies; it must not expire while the job runs.
  return redis.call('GETEX', key, 'PERSIST')
end
