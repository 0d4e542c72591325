-- Shared step: store a job's body and add its id to a queue.
-- Idempotent by id: an existing body is not changed.
-- keys: queue, job, result, wake (names); due: Unix ms; returns 1 stored | 0 the job exists
-- body: the bytes, or {key}: a large one, which a plain SET stored under this key (worker/queue/staging.py).
-- A script that copied it would hold the server.
local function server_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

-- Fail, before the first write, if what was sent before is gone.
local function expect_staged(body)
  if type(body) == 'table' and redis.call('EXISTS', body[1]) == 0 then
    error({err = 'STAGED ' .. body[1] .. ' is gone'})
  end
end

local function put_value(key, value)
  if type(value) == 'table' then
    redis.call('PERSIST', value[1])
    redis.call('RENAME', value[1], key)
  else
    redis.call('SET', key, value)
  end
end

-- For a job that does not exist. A queue of another type stops it before its first write. The body comes
-- last: a right to a command may be taken away at any time, and without a body the job does not exist yet,
-- so that the call that is sent again completes it.
local function store_job(queue, job, result, wake, id, body, due)
  redis.call('ZADD', queue, due, id)
  redis.call('ZADD', wake, 0, 'w')
  -- The result of an earlier job with this id would be mistaken for the new job's.
  redis.call('DEL', result)
  put_value(job, body)
end

local function put_job(queue, job, result, wake, id, body, due)
  if redis.call('EXISTS', job) == 1 then
    return 0
  end
  store_job(queue, job, result, wake, id, body, due)
  return 1
end
