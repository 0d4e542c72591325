#!lua flags=allow-oom
-- attempt_deliveries.lua: record how attempts ended, then begin others: everything that one worker
-- requests in one tick of its event loop.
-- KEYS[1] open deliveries; and those of _delivery.lua and of the history, derived from the prefix
-- ARGV[1] prefix
-- ARGV[2] terms, msgpack {concurrency, host_concurrency, rate: attempts a second, 0: any, slot, breaker_failures, 0: never,
--   open, open_max, disable_after, 0: never, retention, max_attempts: charged ones, most_records}; times ms
-- ARGV[3] ends  ARGV[4] begins, msgpack lists: _record_attempt.lua, _begin_attempt.lua
-- ARGV[5], ARGV[6] the body of the job that reports a delivery's end, before and after the delivery's id
-- returns {{result of each end, ...}, {result of each begin, ...}}; {'error', text} for one that failed
-- An attempt that a crash interrupted stays in the list as it was begun, and is counted. Both calls are
-- safe to send again: a record applies only to the newest attempt, a begin once per run.
-- A user who lacks a right stops a record or a begin before its state is written: what is written before
-- that is written again by the call that is sent again.
-- allow-oom: a full server must be able to end its deliveries.
--@include types
--@include delivery
--@include collect
--@include count_attempts
local t = redis.call('TIME')
local p, now = ARGV[1], t[1] * 1000 + math.floor(t[2] / 1000)
local terms = cmsgpack.unpack(ARGV[2])
terms.report = {ARGV[5], ARGV[6]}
--@include finish_delivery
--@include shared_states

-- An error in one delivery must not fail the others of the call.
local function apart(work, item, more)
  local ok, reply = pcall(work, item, more)
  if ok then
    return reply
  end
  return {'error', type(reply) == 'table' and reply.err or tostring(reply)}
end

local recorded, begun, freed = {}, {}, {}
local to_record, to_begin = cmsgpack.unpack(ARGV[3]), cmsgpack.unpack(ARGV[4])
if #to_record > 0 then
  --@include promote
  --@include record_attempt
  --@include serve_host
  for i, e in ipairs(to_record) do
    recorded[i] = apart(record, e, freed)
  end
  apart(serve, freed)
end
if #to_begin > 0 then
  --@include begin_attempt
  for i, b in ipairs(to_begin) do
    begun[i] = apart(begin, b)
  end
end
index_ends(p, now, terms.retention)
count_attempts(p, now)
return {recorded, begun}
