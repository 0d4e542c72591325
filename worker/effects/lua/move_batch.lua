-- move_batch.lua: one transition of a batch, compare-and-set on its state.
-- KEYS[1] batch  KEYS[2] items list
-- ARGV[1] from  ARGV[2] to  ARGV[3] ttl_ms when it has ended, or ''  ARGV[4..] field, value, ...
-- returns 1 moved | 0 the batch is not in state `from`
if redis.call('HGET', KEYS[1], 'state') ~= ARGV[1] then
  return 0
end
redis.call('HSET', KEYS[1], 'state', ARGV[2], unpack(ARGV, 4))
if ARGV[3] ~= '' then
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
  redis.call('PEXPIRE', KEYS[2], ARGV[3])
end
return 1
