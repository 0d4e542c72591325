#!lua
-- dead_retry.lua: enqueue a dead letter again.
-- KEYS[1] dead  KEYS[2] dead letter  KEYS[3] job body  KEYS[4] result  KEYS[5] wake token  KEYS[6] tries
--   and the queue that the dead letter names
-- ARGV[1] id  ARGV[2] body to use instead of the kept one, or ''
-- returns 1 | 0 no such dead letter | -1 a job with this id exists | -2 its body was not kept
-- no allow-oom: it adds a job.
--@include types
--@include put_job
expect('zset', KEYS[1], KEYS[5])
local found = fields_of(KEYS[2], 'body', 'queue_name')
if not found[2] then
  redis.call('ZREM', KEYS[1], ARGV[1])
  return 0
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  return -1
end
local body = ARGV[2] ~= '' and ARGV[2] or found[1]
if not body or body == '' then
  return -2
end
expect('zset', found[2])
redis.call('DEL', KEYS[6])
put_job(found[2], KEYS[3], KEYS[4], KEYS[5], ARGV[1], body, server_ms())
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[1], ARGV[1])
return 1
