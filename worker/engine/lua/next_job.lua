#!lua flags=allow-oom
-- next_job.lua: claim the next job for a waiting worker, if only one queue has a due job.
-- KEYS[1..4] queues critical, high, default, low  KEYS[5] running: id -> lease's end, Unix ms
-- KEYS[6] wake token  KEYS[7] abort marks  KEYS[10] last poll of this waker  KEYS[12] paused (poll.lua's order)
--   and, derived from the prefix: job:<id> in-progress:<id> retry:<id>
-- ARGV[1] prefix  ARGV[2] this poll's token, never used before: "<run of a worker>:<number>"  ARGV[3] lease_ms
-- returns {id, body (_body.lua), tries, claim, mark} of the job | {}: no job, or one for poll.lua: jobs are
--   due in several queues, the first job has a claim already, or something is paused
-- It writes what poll.lua writes. A waker whose reply was lost sends this poll's token to poll.lua. A copy
-- of this script that arrives later finds that token, or a later one, and claims nothing.
-- allow-oom: as poll.lua.
--@include types
--@include body
local prefix, token, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
-- Fast path: after a wait without a token there is usually no job at all.
local there = redis.call('EXISTS', KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[12])
if there == 0 then
  return {}
end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local ok, last = pcall(cmsgpack.unpack, text_of(KEYS[10]) or '')
if ok and type(last) == 'table' and type(last[1]) == 'string' then
  local run, number = string.match(token, '^(.*):(%d+)$')
  local last_run, last_number = string.match(last[1], '^(.*):(%d+)$')
  if run == last_run and tonumber(number) <= tonumber(last_number) then
    return {}
  end
end
local queue, found
-- The default queue first: often it is the only one.
for _, number in ipairs({3, 1, 2, 4}) do
  if there == 0 then
    break
  end
  local head = redis.call('ZRANGE', KEYS[number], 0, 0, 'WITHSCORES')
  there = there - (head[1] and 1 or 0)
  if head[1] and tonumber(head[2]) <= now then
    if found then
      return {}
    end
    queue, found = number, head
  end
end
-- The key that is left is the one of the pauses.
if not found or there > 0 then
  return {}
end
local id = found[1]
local mark = redis.call('ZSCORE', KEYS[7], id)
local claim = token .. '|' .. queue .. '|' .. (number_of(found[2]) and found[2] or '0') .. '|0'
if redis.call('EXISTS', prefix .. 'in-progress:' .. id) == 1 then
  return {}
end
-- The claim comes last, as in poll.lua. Running jobs of another type stop this before its first write.
redis.call('ZADD', KEYS[5], now + lease, id)
-- A claimed job stays in its queue, where stock clients look for it, but not at its head.
redis.call('ZADD', KEYS[queue], 'XX', now + 2 * lease, id)
local body = body_of(prefix .. 'job:' .. id)
redis.call('SET', prefix .. 'in-progress:' .. id, claim, 'PX', lease + 86400000)
redis.call('SET', KEYS[10], cmsgpack.pack({token, {id}, {}, {}}), 'PX', 4 * lease + 60000)
return {id, body, text_of(prefix .. 'retry:' .. id), claim, mark}
