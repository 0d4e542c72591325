-- Shared step: a job's body, as a row of a claim has it. Needs types before it.
-- returns the body | false: absent | -1: a key of another type | -2: larger than any job may be
local MOST_BODY_BYTES = 67108864
local function body_of(key)
  -- An error here would lose the claims of the whole turn.
  local size = redis.pcall('STRLEN', key)
  if type(size) ~= 'number' then
    return -1
  elseif size > MOST_BODY_BYTES then
    return -2
  end
  -- Stock clients give bodies a lifetime, which must not end under a running job.
  return redis.call('GETEX', key, 'PERSIST')
end
