#!lua
-- cancel_llm.lua: cancel a request for one caller, once; it ends when no other caller waits for it.
-- KEYS[1] request
-- ARGV[1] prefix p of the LLM keys (see _llm_finish.lua)  ARGV[2] request id  ARGV[3] answer
-- ARGV[4] ttl_ms  ARGV[5] usage's ttl_ms  ARGV[6] the caller's suffix (see submit_llm.lua)  ARGV[7] all callers: 1 | 0
-- returns {0 unknown, answered, or not this caller's | 1 others still wait | 2 ended | 3 ended, and it has
--   callbacks: call callbacks_llm.lua, batch id or ''}
-- no allow-oom: the request is kept as a failed one, and its callbacks add jobs.
--@rights
--@include types
--@include llm_waiting
--@include count_requests unchecked
--@include llm_finish
local mark = 'by:' .. ARGV[6]
local row = redis.call('HMGET', KEYS[1], 'gid', 'batch', mark, 'callers')
if not row[1] or (ARGV[7] == '0' and not row[3]) then
  return {0, ''}
end
if ARGV[7] == '0' then
  if row[3] == '0' then
    return {1, ''}
  end
  local callers = number_of(row[4], 1) - 1
  redis.call('HSET', KEYS[1], mark, 0, 'callers', callers)
  if callers > 0 then
    return {1, ''}
  end
end
local ended = finish_llm(ARGV[1], ARGV[2], ARGV[3], '0', ARGV[4], '0', ARGV[5], {}, '', CANCELED, -1)
count_requests(ARGV[1])
return {1 + ended, row[2] or ''}
