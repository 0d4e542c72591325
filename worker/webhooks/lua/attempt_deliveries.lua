#!lua flags=allow-oom
-- attempt_deliveries.lua: write down how attempts ended, then begin others: all that one worker asks
-- for in one tick of its loop.
-- Every key is derived from the prefix: those of _delivery.lua
-- ARGV[1] prefix
-- ARGV[2] terms, msgpack {concurrency, rate: attempts a second, 0: any, slot, breaker_failures, 0: never,
--   open, open_max, disable_after, 0: never, retention, max_attempts: charged ones, most_records}; times ms
-- ARGV[3] ends  ARGV[4] begins, msgpack lists: _record_attempt.lua, _begin_attempt.lua
-- ARGV[5], ARGV[6] the body of the job that reports a delivery's end, before and behind the delivery's id
-- returns {{what became of each end, ...}, {of each begin, ...}}; {'error', text} for one that failed
-- An attempt that a crash cut off stays in the list as it was begun, and is counted. A record counts
-- only for the newest attempt, a begin once for its run: both can be sent again.
-- allow-oom: a full server must be able to end what is there.
--@include types
--@include put_job
--@include delivery
local p, now = ARGV[1], server_ms()
local terms = cmsgpack.unpack(ARGV[2])
terms.report = {ARGV[5], ARGV[6]}
--@include finish_delivery
--@include shared_states
--@include record_attempt
--@include begin_attempt

-- One delivery that cannot be read, for what reason ever, is no other's concern.
local function apart(work, item, more)
  local ok, reply = pcall(work, item, more)
  if ok then
    return reply
  end
  return {'error', type(reply) == 'table' and reply.err or tostring(reply)}
end

local recorded, begun, freed = {}, {}, {}
for i, e in ipairs(cmsgpack.unpack(ARGV[3])) do
  recorded[i] = apart(record, e, freed)
end
for name, places in pairs(freed) do
  -- For one place two may come, so that a target fills up again after a pause.
  if target_of(name).closed <= now then
    promote(p, name, 2 * places)
  end
end
for i, b in ipairs(cmsgpack.unpack(ARGV[4])) do
  begun[i] = apart(begin, b)
end
return {recorded, begun}
