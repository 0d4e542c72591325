-- answer_llm.lua: store a request's answer, once; the first one stays. Then tell the waiters.
-- KEYS[1] request  KEYS[2] answer
-- ARGV[1] answer  ARGV[2] ttl_ms  ARGV[3] request id  ARGV[4] channel
-- returns 1 stored | 0 answered already, or no such request
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
-- The next equal request is a new one. The field holds the key's whole name.
local dedupe = redis.call('HGET', KEYS[1], 'dedupe')
if dedupe and redis.call('GET', dedupe) == ARGV[3] then
  redis.call('DEL', dedupe)
end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[4], ARGV[3])
return 1
