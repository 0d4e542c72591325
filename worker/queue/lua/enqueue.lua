#!lua
-- enqueue.lua: store one job and add it to its queue.
-- KEYS[1] queue  KEYS[2] job body  KEYS[3] result  KEYS[4] wake token  KEYS[5..8] all queues
-- KEYS[9] unique key (only with ARGV[6]); and, derived from ARGV[7]: the body of its holder
-- ARGV[1] id  ARGV[2] body  ARGV[3] delay_ms >= 0  ARGV[4] due Unix ms, or '' for now + delay
-- ARGV[5] most jobs in all queues, 0 for no limit
-- ARGV[6] '' not unique | '0' unique until freed | ttl_ms of a window  ARGV[7] prefix of bodies
-- ARGV[8] key of a large body that was sent before; then ARGV[2] is ''
-- returns {1} stored | {0} a job with this id exists | {-1} full
--       | {2, id} that job holds the unique key; nothing stored
-- no allow-oom: it adds a job. A full server refuses the script before it writes anything.
--@include put_job
if redis.call('EXISTS', KEYS[2]) == 1 then
  return {0}
end
if ARGV[6] ~= '' then
  --@include types
  expect('zset', KEYS[1], KEYS[4])
  local holder = text_of(KEYS[9])
  -- A holder without a body has ended without freeing it.
  if holder and holder ~= ARGV[1]
      and (ARGV[6] ~= '0' or redis.call('EXISTS', ARGV[7] .. holder) == 1) then
    return {2, holder}
  end
end
local most = tonumber(ARGV[5])
if most > 0 then
  local size = 0
  for i = 5, 8 do
    size = size + redis.call('ZCARD', KEYS[i])
  end
  if size >= most then
    return {-1}
  end
end
local due = tonumber(ARGV[4]) or (server_ms() + tonumber(ARGV[3]))
local body = ARGV[8] and {ARGV[8]} or ARGV[2]
if ARGV[8] then
  --@include expect_staged
  expect_staged(body)
end
if ARGV[6] == '0' then
  redis.call('SET', KEYS[9], ARGV[1])
elseif ARGV[6] ~= '' then
  redis.call('SET', KEYS[9], ARGV[1], 'PX', ARGV[6])
end
store_job(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1], body, due)
return {1}
