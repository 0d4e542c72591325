-- Shared step: enqueue a job for each webhook that reports a request's end.
-- Needs types and put_job before it. Call expect_callbacks before any write and put_callback after it.
-- p: prefix of the LLM keys (`arq:llm:`). Keys: callback:<id>: webhook -> job body, '#': number of the end;
-- callbacks; and those of _put_job.lua, under the same prefix without `llm:`.
-- A job's id: llm:callback:<id>:<number of the end>:<who>
local function expect_callbacks(p)
  local base = string.sub(p, 1, -5)
  expect('zset', base .. 'queue', base .. 'queue:wake')
end

local function put_callback(p, id, nth, who, body)
  local base = string.sub(p, 1, -5)
  local job = 'llm:callback:' .. id .. ':' .. nth .. ':' .. who
  put_job(base .. 'queue', base .. 'job:' .. job, base .. 'result:' .. job, base .. 'queue:wake',
    job, body, server_ms())
end

-- A request may have any number of callbacks. The end only lists the request; callbacks_llm.lua
-- enqueues the jobs, a bounded number per call. A key of another type is deleted.
-- returns 1 it has callbacks | 0
local function callback(p, id, ok, ttl)
  local key, list = p .. 'callback:' .. id, p .. 'callbacks'
  local count = redis.pcall('HLEN', key)
  if count == 0 then
    return 0
  end
  if type(count) ~= 'number' then
    redis.call('DEL', key)
    return 0
  end
  local nth = number_of(redis.call('HGET', key, '#'), 0) + 1
  redis.call('HSET', key, '#', nth)
  if ok ~= '1' then
    redis.call('PEXPIRE', key, ttl)
  end
  if not fits('list', list) then
    redis.call('DEL', list)
  end
  redis.call('RPUSH', list, id .. ':' .. string.format('%.0f', nth) .. ':' .. ok .. ':0')
  return 1
end
