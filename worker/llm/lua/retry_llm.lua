#!lua
-- retry_llm.lua: return a failed request to the waiting list, as if it were new.
-- KEYS[1] failed request  KEYS[2] request  KEYS[3] answer
-- KEYS[4] queue  KEYS[5] job body  KEYS[6] job result  KEYS[7] wake token
-- ARGV[1] prefix p of the LLM keys (see _llm_waiting.lua; callback:<id>)  ARGV[2] request id
-- ARGV[3] job id  ARGV[4] job body: a flush of its group
-- returns 1 waits | 0 it has not failed, or waits already
-- no allow-oom: it adds a job.
--@rights
--@include types
--@include put_job
--@include llm_waiting
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('EXISTS', KEYS[2]) == 1 then
  return 0
end
local row = redis.call('HMGET', KEYS[1], 'gid', 'group', 'bytes', 'tokens', 'callers', 'by:')
if not row[1] or not row[2] then
  return 0
end
expect('zset', KEYS[4], KEYS[7])
expect_waiting(ARGV[1], row[1])
redis.call('RENAME', KEYS[1], KEYS[2])
redis.call('PERSIST', KEYS[2])
redis.call('DEL', KEYS[3])
redis.call('PERSIST', ARGV[1] .. 'callback:' .. ARGV[2])
redis.call('HDEL', KEYS[2], 'batch', 'tries', 'single', 'lost', 'dedupe', 'unanswered', 'unanswered_by')
redis.call('HSET', KEYS[2], 'deadline', '', 'expires', '')
local now = server_ms()
if number_of(row[5], 0) < 1 then
  -- All had given it up; now it is the first one's again.
  redis.call('HSET', KEYS[2], 'callers', 1, 'by:', now)
elseif number_of(row[6], 0) > 0 then
  redis.call('HSET', KEYS[2], 'by:', now)
end
start_waiting(ARGV[1], row[1], row[2], ARGV[2], row[3], row[4], 'RPUSH')
put_job(KEYS[4], KEYS[5], KEYS[6], KEYS[7], ARGV[3], ARGV[4], now)
return 1
