-- move_batch.lua: one transition of a batch, compare-and-set on its state and epoch.
-- KEYS[1] batch  KEYS[2] items list  KEYS[3] open set
-- ARGV[1] from  ARGV[2] epoch  ARGV[3] to  ARGV[4] ttl_ms when it has ended, or ''
-- ARGV[5] 1: only when no request is open | 0  ARGV[6..] field, value, ...
-- returns 1 moved (also when this very call moved it before) | 0 another run has it | -1 requests are open
local row = redis.call('HMGET', KEYS[1], 'state', 'epoch')
if row[2] ~= ARGV[2] then
  return 0
end
if row[1] ~= ARGV[1] then
  return row[1] == ARGV[3] and 1 or 0
end
if ARGV[5] == '1' and redis.call('EXISTS', KEYS[3]) == 1 then
  return -1
end
redis.call('HSET', KEYS[1], 'state', ARGV[3], unpack(ARGV, 6))
if ARGV[4] ~= '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
  redis.call('PEXPIRE', KEYS[3], ARGV[4])
end
return 1
