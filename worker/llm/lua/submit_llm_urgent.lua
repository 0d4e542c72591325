#!lua
-- submit_llm_urgent.lua: store one LLM request with its own job, for a direct call without a batch.
-- KEYS[1] request  KEYS[2] answer  KEYS[3] queue  KEYS[4] job body  KEYS[5] job result  KEYS[6] wake token
-- KEYS[7] index of requests with their own job  KEYS[8] webhooks to notify of its end
-- KEYS[9] a hash with the body, which is large and was sent before; or absent
-- ARGV[1] request id  ARGV[2] request body, or ''  ARGV[3] group id  ARGV[4] group descriptor
-- ARGV[5] deadline, Unix ms, or ''  ARGV[6] tokens  ARGV[7] job id  ARGV[8] job body
-- ARGV[9] webhook to notify, or ''  ARGV[10] body of the job that sends it
-- returns the request id
-- no allow-oom: it adds a request and a job.
--@rights of writes TIME EXISTS
--@include types
--@include put_job
--@include put_value
--@include expect_staged
expect('zset', KEYS[3], KEYS[6], KEYS[7])
expect('hash', KEYS[8])
if redis.call('EXISTS', KEYS[1], KEYS[2]) == 0 then
  local now = server_ms()
  -- The last key never exists (cache/connection/scripts.py).
  local large, size = KEYS[10] and {KEYS[9]}, #ARGV[2]
  expect_staged(large)
  if large then
    put_value(KEYS[1], large)
    size = redis.call('HSTRLEN', KEYS[1], 'body')
  end
  redis.call('HSET', KEYS[1], 'gid', ARGV[3], 'group', ARGV[4], 'deadline', ARGV[5], 'expires', ARGV[5],
    'bytes', size, 'tokens', ARGV[6], 'callers', 1, 'by:', now, 'single', 'urgent',
    unpack(large and {} or {'body', ARGV[2]}))
  redis.call('ZADD', KEYS[7], now, ARGV[1])
  if ARGV[9] ~= '' then
    redis.call('HSET', KEYS[8], ARGV[9], ARGV[10])
  end
  put_job(KEYS[3], KEYS[4], KEYS[5], KEYS[6], ARGV[7], ARGV[8], now)
end
return ARGV[1]
