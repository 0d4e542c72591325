#!lua
-- split_batch.lua: move open requests of a refused batch into a new one, one page per call.
-- KEYS[1] new batch  KEYS[2] its items list  KEYS[3] its open set  KEYS[4] batches index
-- KEYS[5] index of batches under way  KEYS[6] queue  KEYS[7] job body  KEYS[8] job result  KEYS[9] wake token
-- KEYS[10] old batch  KEYS[11] its open set  KEYS[12] the original batch
-- ARGV[1] prefix p of the LLM keys; used: request:<id>
-- ARGV[2] old batch id  ARGV[3] new batch id  ARGV[4] id of the original batch
-- ARGV[5] job id  ARGV[6] job body  ARGV[7] due ms of an unsealed batch's job
-- ARGV[8] most batches in the index  ARGV[9] the index's ttl ms  ARGV[10] seal it: 1 | 0
-- ARGV[11..] request ids, <= 500
-- returns {requests of the new batch, 1 moved | 0 it is sealed: use another id}
-- no allow-oom: it adds a batch and a job.
--@rights
--@include types
--@include put_job
local p, old, new = ARGV[1], ARGV[2], ARGV[3]
local row = redis.call('HMGET', KEYS[1], 'state', 'items', 'bytes', 'tokens', 'deadline')
local state, items = row[1], number_of(row[2], 0)
local bytes, tokens, deadline = number_of(row[3], 0), number_of(row[4], 0), number_of(row[5])
local of_old = redis.call('HMGET', KEYS[10], 'group', 'gid', 'moved')
local parts = redis.call('HGET', KEYS[12], 'parts')
expect('list', KEYS[2])
expect('set', KEYS[3], KEYS[11])
expect('zset', KEYS[4], KEYS[5], KEYS[6], KEYS[9])
if not of_old[1] or not of_old[2] then
  error({err = 'ERR ' .. KEYS[10] .. ' is no batch'})
end
local moved = {}
for i = 11, #ARGV do
  local key = p .. 'request:' .. ARGV[i]
  local request = fields_of(key, 'batch', 'bytes', 'tokens', 'deadline')
  if request[1] == old then
    if state and state ~= 'open' then
      return {items, 0}
    end
    moved[#moved + 1] = ARGV[i]
    redis.call('HSET', key, 'batch', new)
    items, bytes, tokens = items + 1, bytes + number_of(request[2], 0), tokens + number_of(request[3], 0)
    local due = number_of(request[4])
    if due and (not deadline or due < deadline) then
      deadline = due
    end
  end
end
if items == 0 or (state and state ~= 'open') then
  return {items, 1}
end
if #moved > 0 then
  redis.call('RPUSH', KEYS[2], unpack(moved))
  redis.call('SADD', KEYS[3], unpack(moved))
  redis.call('SREM', KEYS[11], unpack(moved))
  redis.call('HSET', KEYS[10], 'moved', number_of(of_old[3], 0) + #moved)
end
local now = server_ms()
if not state then
  redis.call('HSET', KEYS[1], 'epoch', 0, 'group', of_old[1], 'gid', of_old[2], 'created', now,
    'parent', old, 'family', ARGV[4])
  if redis.call('EXISTS', KEYS[12]) == 1 then
    redis.call('HSET', KEYS[12], 'parts', number_of(parts, 0) + 1)
  end
  redis.call('ZADD', KEYS[4], now, new)
  redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -1 - tonumber(ARGV[8]))
  redis.call('PEXPIRE', KEYS[4], ARGV[9])
  redis.call('ZADD', KEYS[5], now, new)
end
local sealed = ARGV[10] == '1'
redis.call('HSET', KEYS[1], 'state', sealed and 'sealed' or 'open', 'items', items, 'bytes', bytes,
  'tokens', tokens, 'deadline', deadline or '')
-- If the run dies between two calls, the new batch's own job seals it.
put_job(KEYS[6], KEYS[7], KEYS[8], KEYS[9], ARGV[5], ARGV[6], now + (sealed and 0 or ARGV[7]))
if sealed then
  redis.call('ZADD', KEYS[6], 'XX', 'LT', now, ARGV[5])
end
return {items, 1}
