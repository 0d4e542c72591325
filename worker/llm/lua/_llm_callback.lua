-- Shared step: enqueue the job of a webhook that reports a request's end.
-- Needs types and put_job before it. Call expect_callbacks before any write and put_callback after it.
-- p: prefix of the LLM keys (`arq:llm:`). Keys: those of _put_job.lua, under the same prefix without `llm:`.
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
