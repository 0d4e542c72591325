-- Shared step: those who named a webhook for a request's end are told, each by a job of its own.
-- p: what the LLM keys begin with (`arq:llm:`); keys: tell:<id>, and those of _put_job.lua, which
-- begin with the same prefix without `llm:`. A job's id: llm:callback:<id>:<nth end>:<who>
-- stands after _put_job.lua
local function put_callback(p, id, who, body)
  local base = string.sub(p, 1, -5)
  local nth = redis.call('HGET', p .. 'tell:' .. id, '#') or '1'
  local job = 'llm:callback:' .. id .. ':' .. nth .. ':' .. who
  put_job(base .. 'queue', base .. 'job:' .. job, base .. 'result:' .. job, base .. 'queue:wake',
    job, body, server_ms())
end

local function callback(p, id, ok, ttl)
  local key = p .. 'tell:' .. id
  local rows = redis.call('HGETALL', key)
  if #rows == 0 then
    return
  end
  redis.call('HINCRBY', key, '#', 1)
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
