-- Shared step: store a job's body and put its id in a queue.
-- Idempotent by id: a body that is there already stays as it is.
-- keys: queue, job, result, wake (names); due: Unix ms; returns 1 stored | 0 known already
local function server_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function put_job(queue, job, result, wake, id, body, due)
  if redis.call('EXISTS', job) == 1 then
    return 0
  end
  redis.call('SET', job, body)
  -- A kept result of an earlier job of this id would be taken for the new one's.
  redis.call('DEL', result)
  redis.call('ZADD', queue, due, id)
  redis.call('ZADD', wake, 0, 'w')
  return 1
end
