#!lua
-- dead_retry.lua: enqueue a dead letter again.
-- KEYS[1] dead  KEYS[2] dead letter  KEYS[3] job body  KEYS[4] result  KEYS[5] wake token  KEYS[6] tries
-- KEYS[7] its body, if that is large  KEYS[8..11] queues critical, high, default, low
--   and the queue that the dead letter names, if it is none of these
-- KEYS[12] numbers of the dead jobs' queues
-- ARGV[1] id  ARGV[2] its body, '' if none was kept  ARGV[3] key of a large one that was sent before
-- returns 1 | 0 no such dead letter | -1 a job with this id exists | -2 its body was not kept
-- no allow-oom: it adds a job.
--@rights
--@include types
--@include put_job
--@include expect_staged
expect('zset', KEYS[1], KEYS[5], KEYS[12])
local row = fields_of(KEYS[2], 'queue', 'queue_name')
if not row[1] then
  redis.call('ZREM', KEYS[1], ARGV[1])
  redis.call('ZREM', KEYS[12], ARGV[1])
  return 0
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  return -1
end
local body = ARGV[3] and {ARGV[3]} or ARGV[2]
if body == '' then
  return -2
end
local queue = {KEYS[8], KEYS[9], KEYS[10], KEYS[11]}
queue = row[2] and row[2] ~= '' and row[2] or queue[number_of(row[1], 3)] or KEYS[10]
expect('zset', queue)
expect_staged(body)
redis.call('DEL', KEYS[6])
put_job(queue, KEYS[3], KEYS[4], KEYS[5], ARGV[1], body, server_ms())
redis.call('UNLINK', KEYS[2], KEYS[7])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[12], ARGV[1])
return 1
