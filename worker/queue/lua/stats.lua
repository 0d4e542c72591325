#!lua flags=no-writes
-- stats.lua: count the jobs of every priority, and those of one page of the running, dead and parked jobs.
-- KEYS[1..4] queues critical, high, default, low  KEYS[5] running  KEYS[6] dead  KEYS[7] parked
-- KEYS[8] paused  KEYS[9] numbers of the dead jobs' queues
--   and, derived from the prefix: in-progress:<id> dead:<id>
-- ARGV[1] prefix  ARGV[2] first rank of the page  ARGV[3] its length, <= 1000
-- ARGV[4] cursor of the parked jobs: '0' first, '' no more
-- ARGV[5] '1' the first page has told all dead jobs | '0' it told those of its page | '' this is the first
-- returns {1 there is a next page | 0, four of {due, later, age of the oldest due job (ms) | -1, held back by
--   a pause, and of this page: running, dead, parked}, next cursor | '', 1 all dead jobs are told | 0}
--@include types
--@include held
--@include pauses
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local from, to = tonumber(ARGV[2]), ARGV[2] + ARGV[3] - 1
local running, dead, parked = {0, 0, 0, 0}, {0, 0, 0, 0}, {0, 0, 0, 0}
-- One command for a page where there is one: most of a step's time is spent on calling commands.
local claims = {}
for i, id in ipairs(redis.call('ZRANGE', KEYS[5], from, to)) do
  claims[i] = ARGV[1] .. 'in-progress:' .. id
end
for _, claim in ipairs(#claims > 0 and redis.call('MGET', unpack(claims)) or {}) do
  local number = tonumber(string.match(claim or '', '|([1-4])|'))
  if number then
    running[number] = running[number] + 1
  end
end
-- Where some were buried or removed by an earlier release, their queues are read one by one.
local whole = ARGV[5] == '1'
if ARGV[5] == '' and fits('zset', KEYS[9]) and redis.call('ZCARD', KEYS[9]) == redis.call('ZCARD', KEYS[6]) then
  whole = true
  for number = 1, 4 do
    dead[number] = redis.call('ZCOUNT', KEYS[9], number, number)
  end
end
for _, id in ipairs(whole and {} or redis.call('ZRANGE', KEYS[6], from, to)) do
  local queue = allowed(redis.pcall('HGET', ARGV[1] .. 'dead:' .. id, 'queue'))
  local number = type(queue) == 'string' and number_of(queue)
  if number and dead[number] then
    dead[number] = dead[number] + 1
  end
end
local cursor = ''
if ARGV[4] ~= '' and fits('hash', KEYS[7]) then
  local page = redis.call('HSCAN', KEYS[7], ARGV[4], 'COUNT', ARGV[3])
  cursor = page[1] ~= '0' and page[1] or ''
  local ids = {}
  for i = 1, #page[2], 2 do
    ids[#ids + 1] = page[2][i]
  end
  for number = 1, #ids > 0 and 4 or 0 do
    for _, score in ipairs(redis.call('ZMSCORE', KEYS[number], unpack(ids))) do
      parked[number] = parked[number] + (score and 1 or 0)
    end
  end
end
local rows, pauses = {}, pauses_of(KEYS[8])
for i = 1, 4 do
  local due = redis.call('ZCOUNT', KEYS[i], '-inf', now)
  local later = redis.call('ZCARD', KEYS[i]) - due
  local head = redis.call('ZRANGE', KEYS[i], 0, 0, 'WITHSCORES')
  local age = due > 0 and math.floor(now - number_of(head[2], 0)) or -1
  local held = redis.call('ZCOUNT', KEYS[i], HELD, '+inf')
  later = later - held
  if pauses and pauses.queues[i] then
    due, held = 0, held + due
  end
  rows[i] = {due, later, age, held, running[i], dead[i], parked[i]}
end
local longest = math.max(redis.call('ZCARD', KEYS[5]), whole and 0 or redis.call('ZCARD', KEYS[6]))
return {longest > to + 1 and 1 or 0, rows, cursor, whole and 1 or 0}
