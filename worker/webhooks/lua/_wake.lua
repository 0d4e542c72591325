-- Shared step: wake a waiting delivery. Needs types before it.
local QUEUES = {'queue:critical', 'queue:high', 'queue', 'queue:low'}

-- Make a waiting delivery's job due, but not before its `after`. returns moved | running | gone
local function wake(p, id, due)
  local row = fields_of(p .. 'webhook:' .. id, 'job', 'after')
  local job = row[1]
  if not job then
    return 'gone'
  end
  -- `after` is a delay that the caller or the policy requested.
  due = math.max(number_of(due, 0), number_of(row[2], 0))
  if redis.call('EXISTS', p .. 'in-progress:' .. job) == 1 then
    return 'running'
  end
  local found = false
  for _, queue in ipairs(QUEUES) do
    if type(allowed(redis.pcall('ZSCORE', p .. queue, job))) == 'string' then
      redis.call('ZADD', p .. queue, 'XX', 'LT', due, job)
      found = true
    end
  end
  if not found then
    return 'gone'
  end
  redis.pcall('ZADD', p .. 'queue:wake', 0, 'w')
  return 'moved'
end
