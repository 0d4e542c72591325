-- stats.lua: count the jobs of every priority in one atomic step.
-- KEYS[1..4] queues critical, high, default, low  KEYS[5] running  KEYS[6] dead
--   and, derived from the prefix: in-progress:<id> dead:<id>
-- ARGV[1] prefix
-- returns four of {due, later, age of the oldest due job (ms) | -1, running, dead}
--@include types
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local running, dead = {0, 0, 0, 0}, {0, 0, 0, 0}
for _, id in ipairs(redis.call('ZRANGE', KEYS[5], 0, -1)) do
  local claim = text_of(ARGV[1] .. 'in-progress:' .. id) or ''
  local number = tonumber(string.match(claim, '|([1-4])|'))
  if number then
    running[number] = running[number] + 1
  end
end
for _, id in ipairs(redis.call('ZRANGE', KEYS[6], 0, -1)) do
  local queue = redis.pcall('HGET', ARGV[1] .. 'dead:' .. id, 'queue')
  local number = type(queue) == 'string' and number_of(queue)
  if number and dead[number] then
    dead[number] = dead[number] + 1
  end
end
local rows = {}
for i = 1, 4 do
  local due = redis.call('ZCOUNT', KEYS[i], '-inf', now)
  local later = redis.call('ZCARD', KEYS[i]) - due
  local head = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
  local age = due > 0 and math.floor(now - number_of(head[2], 0)) or -1
  rows[i] = {due, math.max(0, later - running[i]), age, running[i], dead[i]}
end
return rows
