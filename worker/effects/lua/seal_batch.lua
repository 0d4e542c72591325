-- seal_batch.lua: move the oldest waiting requests of a group into a new batch, with its job.
-- KEYS[1] pending list  KEYS[2] groups hash  KEYS[3] batch  KEYS[4] items list
-- KEYS[5] queue  KEYS[6] job body  KEYS[7] result  KEYS[8] wake token
-- ARGV[1] group id  ARGV[2] group descriptor  ARGV[3] most requests (<= 5000: LPOP and unpack stay short)
-- ARGV[4] job id  ARGV[5] job body  ARGV[6] least requests: fewer wait on
-- returns how many were moved; 0 when too few wait or the batch exists already
--@include put_job
if redis.call('EXISTS', KEYS[3]) == 1 then
  return 0
end
if redis.call('LLEN', KEYS[1]) < tonumber(ARGV[6]) then
  return 0
end
local ids = redis.call('LPOP', KEYS[1], ARGV[3])
if not ids then
  redis.call('HDEL', KEYS[2], ARGV[1])
  return 0
end
redis.call('RPUSH', KEYS[4], unpack(ids))
local now = server_ms()
redis.call('HSET', KEYS[3], 'state', 'sealed', 'group', ARGV[2], 'items', #ids, 'created', now)
put_job(KEYS[5], KEYS[6], KEYS[7], KEYS[8], ARGV[4], ARGV[5], now)
if redis.call('LLEN', KEYS[1]) == 0 then
  redis.call('HDEL', KEYS[2], ARGV[1])
end
return #ids
