-- Shared step: those who named a webhook for a request's end are told, each by a job of its own.
-- p: what the LLM keys begin with (`arq:llm:`); keys: callback:<id>, and those of _put_job.lua, which
-- begin with the same prefix without `llm:`. A job's id: llm:callback:<id>:<nth end>:<who>
-- stands after _types.lua and _put_job.lua; whoever tells calls expect_callbacks before it writes
local function expect_callbacks(p)
  local base = string.sub(p, 1, -5)
  expect('zset', base .. 'queue', base .. 'queue:wake')
end

-- Those to tell and their jobs, flat. A key of another type in their place is nobody's, and goes.
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
  -- One that failed may be let go again, and then end again.
  if ok == '1' then
    redis.call('UNLINK', key)
  else
    redis.call('PEXPIRE', key, ttl)
  end
end
