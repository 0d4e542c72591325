#!lua
-- seal_batch.lua: move the oldest waiting requests of a group into a batch, one chunk per call; the
-- call that fills it, or moves the last waiting request, seals it and starts its job.
-- KEYS[1] batch  KEYS[2] items list  KEYS[3] open set  KEYS[4] batches index
-- KEYS[5] index of batches under way  KEYS[6] queue  KEYS[7] job body  KEYS[8] job result  KEYS[9] wake token
-- ARGV[1] prefix p of the LLM keys; used: pending:<gid>, groups, sizes:<gid>, request:<id>
-- ARGV[2] group id  ARGV[3] group descriptor  ARGV[4] batch id
-- ARGV[5] most requests  ARGV[6] most bytes  ARGV[7] most tokens, 0 none  ARGV[8] full batches only: 1 | 0
-- ARGV[9] job id  ARGV[10] job body  ARGV[11] chunk, <= 250  ARGV[12] due ms of an unsealed batch's job
-- ARGV[13] most batches in the index  ARGV[14] the index's ttl ms
-- ARGV[15] id of the flush by age that calls, or ''  ARGV[16] its body  ARGV[17] ms that a request waits at most
-- returns {requests of the batch, 1 sealed | 0 call again}
-- A flush by age belongs to a request that may be in a batch by now: full, or flushed by the cron job. While the
-- oldest request that waits is younger, it seals nothing, and that request gets a flush of its own.
-- no allow-oom: it adds a batch and a job.
--@rights
--@include types
--@include put_job
--@include llm_waiting
local p, gid = ARGV[1], ARGV[2]
local pending = p .. 'pending:' .. gid
local most, most_bytes, most_tokens = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local row = redis.call('HMGET', KEYS[1], 'state', 'items', 'bytes', 'tokens', 'deadline')
local state, items = row[1], number_of(row[2], 0)
local bytes, tokens, deadline = number_of(row[3], 0), number_of(row[4], 0), number_of(row[5])
if state and state ~= 'open' then
  return {items, 1}
end
expect('list', KEYS[2])
expect('set', KEYS[3])
expect('zset', KEYS[4], KEYS[5], KEYS[6], KEYS[9])
expect_waiting(p, gid)
local waiting = redis.call('LLEN', pending)
if not state and ARGV[8] == '1' then
  local sizes = redis.call('HMGET', p .. 'sizes:' .. gid, 'bytes', 'tokens')
  if waiting < most and number_of(sizes[1], 0) < most_bytes
      and (most_tokens == 0 or number_of(sizes[2], 0) < most_tokens) then
    return {0, 1}
  end
end

local now = server_ms()
if not state and ARGV[15] ~= '' then
  local head = redis.call('LINDEX', pending, 0)
  local since = head and number_of(fields_of(p .. 'request:' .. head, 'by:')[1], 0) or 0
  local id, due = 'llm:age:' .. (head or ''), since + tonumber(ARGV[17])
  -- A time of 1 or less is no time.
  if since > 1 and due > now and id ~= ARGV[15] then
    local base = string.sub(p, 1, -5)
    put_job(KEYS[6], base .. 'job:' .. id, base .. 'result:' .. id, KEYS[9], id, ARGV[16], due)
    return {0, 1}
  end
end

local moved, left_bytes, left_tokens, full, looks = {}, 0, 0, items >= most, 0
while not full and #moved < tonumber(ARGV[11]) and looks < 2 * ARGV[11] do
  looks = looks + 1
  local id = redis.call('LINDEX', pending, 0)
  if not id then
    break
  end
  local key = p .. 'request:' .. id
  local size = fields_of(key, 'bytes', 'tokens', 'deadline', 'tries', 'batch')
  if size[5] then
    -- It is in the list twice: retried after its id stayed in the middle of the list.
    size = {}
  end
  local more_bytes, more_tokens = number_of(size[1], 0), number_of(size[2], 0)
  -- One request alone may be larger than the limits of a batch.
  full = items > 0 and (bytes + more_bytes > most_bytes
    or (most_tokens > 0 and tokens + more_tokens > most_tokens))
  if not full then
    redis.call('LPOP', pending)
    if size[1] then
      moved[#moved + 1] = id
      redis.call('HSET', key, 'batch', ARGV[4], 'tries', number_of(size[4], 0) + 1)
      items, bytes, tokens = items + 1, bytes + more_bytes, tokens + more_tokens
      left_bytes, left_tokens = left_bytes + more_bytes, left_tokens + more_tokens
      local due = number_of(size[3])
      if due and (not deadline or due < deadline) then
        deadline = due
      end
      full = items >= most
    end
  end
end
stopped_waiting(p, gid, left_bytes, left_tokens)
if items == 0 then
  return {0, 1 - redis.call('EXISTS', pending)}
end
if #moved > 0 then
  redis.call('RPUSH', KEYS[2], unpack(moved))
  redis.call('SADD', KEYS[3], unpack(moved))
end
if not state then
  redis.call('HSET', KEYS[1], 'epoch', 0, 'group', ARGV[3], 'gid', gid, 'created', now)
  redis.call('ZADD', KEYS[4], now, ARGV[4])
  redis.call('ZADD', KEYS[5], now, ARGV[4])
  redis.call('ZREMRANGEBYRANK', KEYS[4], 0, -1 - tonumber(ARGV[13]))
  redis.call('PEXPIRE', KEYS[4], ARGV[14])
end
local sealed = full or redis.call('EXISTS', pending) == 0
redis.call('HSET', KEYS[1], 'state', sealed and 'sealed' or 'open', 'items', items, 'bytes', bytes,
  'tokens', tokens, 'deadline', deadline or '')
-- If the flush dies between two calls, the batch's own job seals it.
put_job(KEYS[6], KEYS[7], KEYS[8], KEYS[9], ARGV[9], ARGV[10], now + (sealed and 0 or ARGV[12]))
if sealed then
  redis.call('ZADD', KEYS[6], 'XX', 'LT', now, ARGV[9])
end
return {items, sealed and 1 or 0}
