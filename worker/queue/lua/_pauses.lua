-- Shared step: what is paused. Needs types before it.
-- Paused: hash, "priority:<name>" or "function:<name>" -> since, Unix ms; "resume:<function>" while its jobs
-- go back. A held job stays in its queue, HELD ms after its due time, where no claim looks;
-- "<queue>:held:<function>" lists it by its due time.
local NUMBERS = {critical = 1, high = 2, default = 3, low = 4}

-- returns {queues = {number = true}, functions = {name = true} | nil, back = function | nil} | nil: nothing is paused
local function pauses_of(key)
  local found, rows = {queues = {}}, allowed(redis.pcall('HGETALL', key))
  if rows.err or #rows == 0 then
    return nil
  end
  for i = 1, #rows, 2 do
    local kind, name = string.match(rows[i], '^(%l+):(.+)$')
    if kind == 'priority' and NUMBERS[name] then
      found.queues[NUMBERS[name]] = true
    elseif kind == 'function' then
      found.functions = found.functions or {}
      found.functions[name] = true
    elseif kind == 'resume' then
      found.back = name
    end
  end
  return found
end
