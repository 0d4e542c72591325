-- submit_llm.lua: take in one LLM request; start a flush when its group is full, and one for later
-- when it is the group's first.
-- KEYS[1] request  KEYS[2] dedupe  KEYS[3] pending list  KEYS[4] groups hash  KEYS[5] wake token
-- KEYS[6] queue  KEYS[7] now-job body  KEYS[8] now-job result  KEYS[9] age-job body  KEYS[10] age-job result
-- ARGV[1] request id  ARGV[2] request body  ARGV[3] group id  ARGV[4] group descriptor
-- ARGV[5] dedupe: 1 | 0  ARGV[6] batch limit >= 1  ARGV[7] max age ms
-- ARGV[8] now-job id  ARGV[9] now-job body  ARGV[10] age-job id  ARGV[11] age-job body
-- ARGV[12] deadline, Unix ms, or ''
-- returns the id of the request that will be answered: the new one, or an equal one in flight
--@include put_job
if redis.call('EXISTS', KEYS[1]) == 1 then
  return ARGV[1]
end
if ARGV[5] == '1' then
  local twin = redis.call('GET', KEYS[2])
  if twin then
    return twin
  end
  redis.call('SET', KEYS[2], ARGV[1])
end
local now = server_ms()
redis.call('HSET', KEYS[1], 'body', ARGV[2], 'group', ARGV[3], 'created', now, 'deadline', ARGV[12])
if ARGV[5] == '1' then
  redis.call('HSET', KEYS[1], 'dedupe', KEYS[2])
end
redis.call('HSET', KEYS[4], ARGV[3], ARGV[4])
local waiting = redis.call('RPUSH', KEYS[3], ARGV[1])
if waiting == 1 then
  put_job(KEYS[6], KEYS[9], KEYS[10], KEYS[5], ARGV[10], ARGV[11], now + tonumber(ARGV[7]))
end
if waiting >= tonumber(ARGV[6]) then
  put_job(KEYS[6], KEYS[7], KEYS[8], KEYS[5], ARGV[8], ARGV[9], now)
end
return ARGV[1]
