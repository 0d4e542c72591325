-- Shared step: enqueue a job for each webhook that reports a request's end.
-- Needs put_job before it.
-- p: prefix of the LLM keys (`arq:llm:`). Keys: tell:<id>: webhook -> job body, '#': number of the end;
-- and those of _put_job.lua, under the same prefix without `llm:`.
-- A job's id: llm:callback:<id>:<number of the end>:<who>
local function expect_callbacks(p)
  local base = string.sub(p, 1, -5)
  expect('zset', base .. 'queue', base .. 'queue:wake')
end
local function callback_rows(p, id)
  local rows = redis.pcall('HGETALL', p .. 'callback:' .. id)
  if rows.err then
    redis.call('DEL', p .. 'callback:' .. id)
    return {}
  end
  return rows
end
local function put_callback(p, id, who, body)
  local base = string.sub(p, 1, -5)
  local nth = redis.call('HGET', p .. 'callback:' .. id, '#') or '1'
  local job = 'llm:callback:' .. id .. ':' .. nth .. ':' .. who
  put_job(base .. 'queue', base .. 'job:' .. job, base .. 'result:' .. job, base .. 'queue:wake',
    job, body, server_ms())
end

local function callback(p, id, rows, ok, ttl)
  local key = p .. 'callback:' .. id
  if #rows == 0 then
    return
  end
  redis.call('HSET', key, '#', number_of(redis.call('HGET', key, '#'), 0) + 1)
  for i = 1, #rows, 2 do
    if rows[i] ~= '#' then
      put_callback(p, id, rows[i], rows[i + 1])
    end
  end
  -- A failed request may be retried and end again.
  if ok == '1' then
    redis.call('UNLINK', key)
  else
    redis.call('PEXPIRE', key, ttl)
  end
end
