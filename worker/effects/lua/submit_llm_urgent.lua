-- submit_llm_urgent.lua: take in one LLM request with a job of its own, past the batches.
-- KEYS[1] request  KEYS[2] queue  KEYS[3] job body  KEYS[4] result  KEYS[5] wake token
-- ARGV[1] request id  ARGV[2] request body  ARGV[3] group id  ARGV[4] deadline, Unix ms, or ''
-- ARGV[5] job id  ARGV[6] job body
-- returns the request id
--@include put_job
if redis.call('EXISTS', KEYS[1]) == 0 then
  local now = server_ms()
  redis.call('HSET', KEYS[1], 'body', ARGV[2], 'group', ARGV[3], 'created', now, 'deadline', ARGV[4])
  put_job(KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[5], ARGV[6], now)
end
return ARGV[1]
