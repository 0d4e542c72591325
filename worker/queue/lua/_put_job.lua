-- Shared step: store a job's body and add its id to a queue.
-- Idempotent by id: an existing body is not changed.
-- keys: queue, job, result, wake (names); due: Unix ms; returns 1 stored | 0 the job exists
-- body: the bytes, or {key}: a large one (_put_value.lua)
local function server_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- For a job that does not exist. A queue of another type stops it before its first write. The body comes
-- last: a right to a command may be taken away at any time, and without a body the job does not exist yet,
-- so that the call that is sent again completes it.
local function store_job(queue, job, result, wake, id, body, due)
  redis.call('ZADD', queue, due, id)
  -- Where the wake token is of another type, workers find the job by polling.
  local woken = redis.pcall('ZADD', wake, 0, 'w')
  if type(woken) == 'table' and not string.find(woken.err, 'WRONGTYPE', 1, true) then
    error(woken)
  end
  -- The result of an earlier job with this id would be mistaken for the new job's.
  redis.call('DEL', result)
  if type(body) == 'table' then
    --@include put_value
    put_value(job, body)
  else
    redis.call('SET', job, body)
  end
end

local function put_job(queue, job, result, wake, id, body, due)
  if redis.call('EXISTS', job) == 1 then
    return 0
  end
  store_job(queue, job, result, wake, id, body, due)
  return 1
end
