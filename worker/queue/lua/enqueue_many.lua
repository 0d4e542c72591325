#!lua
-- enqueue_many.lua: store many jobs, all or none, and the gathering that they belong to, if any.
-- KEYS[1] wake token  KEYS[2..5] queues critical, high, default, low
-- KEYS[6] gathering, KEYS[7] result of the job that follows it; unused when there is none
-- KEYS[8] its first fields, a hash that was sent before because they are large; or absent
--   and, derived from the prefix: job:<id> result:<id>
-- ARGV[1] prefix  ARGV[2] most jobs in all queues, 0 for no limit
-- ARGV[3] ttl_ms of the gathering  ARGV[4] number of its field, value pairs that follow
-- ARGV[5..] those pairs, then per job: id, number of its queue, delay_ms, body; a negative number: the
-- key of a large body that was sent before
-- returns how many are new, 0 while an earlier gathering for the same job is open | -1 full
-- no allow-oom: it adds jobs.
--@rights
--@include types
--@include put_job
--@include put_value
--@include expect_staged
expect('zset', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5])
local prefix, most, pairs_ = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[4])
local first = 5 + 2 * pairs_
if most > 0 then
  local size = (#ARGV - first + 1) / 4
  for i = 2, 5 do
    size = size + redis.call('ZCARD', KEYS[i])
  end
  if size > most then
    return -1
  end
end
for i = first, #ARGV, 4 do
  if string.sub(ARGV[i + 1], 1, 1) == '-' then
    expect_staged({ARGV[i + 3]})
  end
end
-- The last key never exists (cache/connection/scripts.py).
local large = KEYS[9] and {KEYS[8]}
expect_staged(large)
if pairs_ > 0 then
  -- Its parts would overwrite those of the earlier one.
  if redis.call('EXISTS', KEYS[6]) == 1 then
    return 0
  end
  if large then
    put_value(KEYS[6], large)
  end
  redis.call('HSET', KEYS[6], unpack(ARGV, 5, first - 1))
  redis.call('PEXPIRE', KEYS[6], ARGV[3])
  redis.call('DEL', KEYS[7])
end
-- The same as put_job, with one command for all jobs of a queue, and one for all bodies if every job is new.
local now, results, due, bodies, seen = server_ms(), {}, {{}, {}, {}, {}}, {}, {}
for i = first, #ARGV, 4 do
  local id = ARGV[i]
  if seen[id] or string.sub(ARGV[i + 1], 1, 1) == '-' then
    bodies = {}
    break
  end
  seen[id] = true
  bodies[#bodies + 1], bodies[#bodies + 2] = prefix .. 'job:' .. id, ARGV[i + 3]
end
local all_new = #bodies > 0 and redis.call('MSETNX', unpack(bodies)) == 1
for i = first, #ARGV, 4 do
  local id, number = ARGV[i], tonumber(ARGV[i + 1])
  local job, rows, is_new = prefix .. 'job:' .. id, due[math.abs(number)], all_new
  if all_new then
    -- Its body is there.
  elseif number > 0 then
    is_new = redis.call('SET', job, ARGV[i + 3], 'NX')
  elseif redis.call('EXISTS', job) == 0 then
    put_value(job, {ARGV[i + 3]})
    is_new = true
  end
  if is_new then
    results[#results + 1] = prefix .. 'result:' .. id
    rows[#rows + 1], rows[#rows + 2] = now + tonumber(ARGV[i + 2]), id
  end
end
if #results > 0 then
  redis.call('DEL', unpack(results))
  for number = 1, 4 do
    if #due[number] > 0 then
      redis.call('ZADD', KEYS[1 + number], unpack(due[number]))
    end
  end
  redis.call('ZADD', KEYS[1], 0, 'w')
end
return #results
