-- cancel_llm.lua: one caller gives up a request; it ends when no other waits for it.
-- KEYS[1] request
-- ARGV[1] prefix p of the LLM keys (see _llm_finish.lua)  ARGV[2] request id  ARGV[3] answer
-- ARGV[4] ttl_ms  ARGV[5] usage's ttl_ms  ARGV[6] id of this call  ARGV[7] all callers: 1 | 0
-- returns {0 unknown or answered | 1 others still wait | 2 ended, batch id or ''}
--@include put_job
--@include llm_tell
--@include llm_waiting
--@include llm_finish
local row = redis.call('HMGET', KEYS[1], 'gid', 'batch', 'callers')
if not row[1] then
  return {0, ''}
end
local callers = tonumber(row[3] or 1)
if ARGV[7] == '0' and redis.call('HSETNX', KEYS[1], 'left:' .. ARGV[6], 1) == 1 then
  callers = redis.call('HINCRBY', KEYS[1], 'callers', -1)
end
if ARGV[7] == '0' and callers > 0 then
  return {1, ''}
end
finish_llm(ARGV[1], ARGV[2], ARGV[3], '0', ARGV[4], '0', ARGV[5], {})
return {2, row[2] or ''}
