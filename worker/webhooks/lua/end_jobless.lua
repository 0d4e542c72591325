#!lua flags=allow-oom
-- end_jobless.lua: end open deliveries whose job was aborted, purged, or deleted by hand.
-- KEYS[1] open deliveries; and those of _delivery.lua, of the history and dead:<job id>, dead-body:<job id>, derived from the prefix
-- ARGV[1] prefix  ARGV[2] ms since the last check  ARGV[3] most to check  ARGV[4] retention_ms
-- ARGV[5], ARGV[6] the body of the job that reports a delivery's end, before and after the delivery's id
-- returns {number checked, id of one that was ended, ...}
-- A dead letter counts as a job: the rescuer retries it. Deliveries with a job get the current time in
-- the index, so that the least recently checked come first.
-- allow-oom: a delivery that ends makes room.
--@rights
--@include types
--@include put_job
--@include delivery
--@include promote
--@include finish_delivery
--@include collect
--@include count_attempts
local p, now = ARGV[1], server_ms()
local open, report = p .. 'webhook-open', {ARGV[5], ARGV[6]}
local ids = redis.call('ZRANGEBYSCORE', open, '-inf', now - ARGV[2], 'LIMIT', 0, ARGV[3])
local rows = {#ids}

local function has_job(job)
  if redis.call('EXISTS', p .. 'job:' .. job, p .. 'dead-body:' .. job) > 0 then
    return true
  end
  local size = allowed(redis.pcall('HSTRLEN', p .. 'dead:' .. job, 'body'))
  return type(size) == 'number' and size > 0
end

local function look_at(id)
  local f = fields_of(p .. 'webhook:' .. id, 'state', 'job', 'endpoint', 'order', 'on_end', 'replays', 'parked', 'host')
  if not f[1] or ENDED[f[1]] then
    redis.call('ZREM', open, id)
  elseif f[2] and has_job(f[2]) then
    redis.call('ZADD', open, 'XX', now, id)
  else
    local d = {endpoint = f[3], order = f[4], on_end = f[5], replays = f[6], parked = f[7]}
    local slots, host_slots = p .. 'webhook-slots:' .. d.endpoint, p .. 'webhook-host:' .. (f[8] or '')
    expect('zset', slots, host_slots)
    expect_end(p, 'dead', d)
    local freed = redis.call('ZREM', slots, id)
    redis.call('ZREM', host_slots, id)
    finish(p, id, 'dead', '', 'job_removed', now, ARGV[4], d, report)
    count_attempt(d.endpoint, 'dead', f[1] == 'sending')
    if freed == 1 then
      promote(p, d.endpoint, 2)
    end
    rows[#rows + 1] = id
  end
end

for _, id in ipairs(ids) do
  -- One that cannot be ended is looked at again in its turn, like those that are well.
  if not pcall(look_at, id) then
    redis.call('ZADD', open, 'XX', now, id)
  end
end
index_ends(p, now, ARGV[4])
count_attempts(p, now)
return rows
