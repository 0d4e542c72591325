#!lua flags=allow-oom
-- move_batch.lua: one transition of a batch, compare-and-set on its state and epoch.
-- KEYS[1] batch  KEYS[2] items list  KEYS[3] open set  KEYS[4] index of batches under way
-- KEYS[5] queue  KEYS[6] job body  KEYS[7] job result  KEYS[8] wake token
-- ARGV[1] from  ARGV[2] epoch  ARGV[3] to  ARGV[4] ttl_ms when it has ended, or ''
-- ARGV[5] batch id
-- ARGV[6] job to start when it has ended, or ''  ARGV[7] its body  ARGV[8..] field, value, ...
-- returns 1 moved (also when the same call moved it before) | 0 another run owns it
--   | -1 not ended, because requests are open
-- allow-oom: as take_batch.lua.
--@rights
--@include types
--@include put_job
if ARGV[4] ~= '' then
  expect('zset', KEYS[4])
end
if ARGV[6] ~= '' then
  expect('zset', KEYS[5], KEYS[8])
end
local row = redis.call('HMGET', KEYS[1], 'state', 'epoch')
if row[2] ~= ARGV[2] then
  return 0
end
if row[1] ~= ARGV[1] then
  return row[1] == ARGV[3] and 1 or 0
end
if ARGV[4] ~= '' and redis.call('EXISTS', KEYS[3]) == 1 then
  return -1
end
redis.call('HSET', KEYS[1], 'state', ARGV[3], 'progressed', server_ms(), unpack(ARGV, 8))
if ARGV[4] ~= '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  redis.call('PEXPIRE', KEYS[3], ARGV[4])
  redis.call('ZREM', KEYS[4], ARGV[5])
  if ARGV[6] ~= '' then
    put_job(KEYS[5], KEYS[6], KEYS[7], KEYS[8], ARGV[6], ARGV[7], server_ms())
  end
end
return 1
