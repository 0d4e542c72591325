-- Shared step: store a job's body and add its id to a queue.
-- Idempotent by id: an existing body is not changed.
-- keys: queue, job, result, wake (names); due: Unix ms; returns 1 stored | 0 the job exists
local function server_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function put_job(queue, job, result, wake, id, body, due)
  if redis.call('EXISTS', job) == 1 then
    return 0
  end
  redis.call('SET', job, body)
  -- The result of an earlier job with this id would be mistaken for the new job's.
  redis.call('DEL', result)
  redis.call('ZADD', queue, due, id)
  redis.call('ZADD', wake, 0, 'w')
  return 1
end
