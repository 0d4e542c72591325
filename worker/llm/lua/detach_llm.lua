#!lua
-- detach_llm.lua: take a request out of a batch: back to the waiting list, or to its own job.
-- KEYS[1] request  KEYS[2] queue  KEYS[3] job body  KEYS[4] job result  KEYS[5] wake token
-- ARGV[1] prefix p of the LLM keys; written: batch:<bid>, open:<bid>, single, those of _llm_waiting.lua
-- and of the history
-- ARGV[2] request id  ARGV[3] batch id  ARGV[4] wait | single | urgent  ARGV[5] job id  ARGV[6] job body
-- ARGV[7] delay_ms of the job
-- returns 1 detached | 0 the request is no longer in this batch
-- no allow-oom: it adds a job.
--@rights
--@include types
--@include put_job
--@include llm_waiting
--@include count_requests unchecked
local p = ARGV[1]
local row = redis.call('HMGET', KEYS[1], 'batch', 'gid', 'group', 'bytes', 'tokens')
if row[1] ~= ARGV[3] or not row[2] or not row[3] then
  return 0
end
expect('zset', KEYS[2], KEYS[5], p .. 'single')
expect('set', p .. 'open:' .. ARGV[3])
if ARGV[4] == 'wait' then
  expect_waiting(p, row[2])
end
local moved = redis.call('HGET', p .. 'batch:' .. ARGV[3], 'moved')
redis.call('HDEL', KEYS[1], 'batch')
-- An answer from that batch is still accepted.
redis.call('HSET', KEYS[1], 'left:' .. ARGV[3], 1)
redis.call('SREM', p .. 'open:' .. ARGV[3], ARGV[2])
redis.call('HSET', p .. 'batch:' .. ARGV[3], 'moved', number_of(moved, 0) + 1)
if ARGV[4] == 'wait' then
  start_waiting(p, row[2], row[3], ARGV[2], row[4], row[5], 'LPUSH')
else
  redis.call('HSET', KEYS[1], 'single', ARGV[4])
  redis.call('ZADD', p .. 'single', server_ms(), ARGV[2])
end
put_job(KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[5], ARGV[6], server_ms() + tonumber(ARGV[7]))
if ARGV[4] == 'wait' then
  count_request(row[3], RETRIED, 0, -1)
  count_requests(p)
end
return 1
