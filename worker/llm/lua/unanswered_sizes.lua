#!lua flags=no-writes
-- unanswered_sizes.lua: count the unanswered requests of one page of a batch, and the bytes that they send.
-- KEYS[1] ids of the batch's requests, in the order of its file; and, derived from ARGV[1]: request:<id>
-- ARGV[1] prefix p of the LLM keys  ARGV[2] batch id  ARGV[3] first position of the page  ARGV[4] its most ids
-- returns {ids in the page, unanswered ones, bytes of their bodies and ids}
--@include types
local ids = redis.call('LRANGE', KEYS[1], ARGV[3], ARGV[3] + ARGV[4] - 1)
local count, bytes = 0, 0
for _, id in ipairs(ids) do
  local key = ARGV[1] .. 'request:' .. id
  -- A key of another type is no request.
  if allowed(redis.pcall('HGET', key, 'batch')) == ARGV[2] then
    -- The stored size may not be the body's; the upload would break off for it.
    count, bytes = count + 1, bytes + redis.call('HSTRLEN', key, 'body') + #id
  end
end
return {#ids, count, bytes}
