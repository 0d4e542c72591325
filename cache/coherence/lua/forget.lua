#!lua flags=allow-oom
-- forget.lua: forget what is named, and begin, renew or end an intent to change it.
-- KEYS: first ARGV[1] indexes, then ARGV[2] intents, then what is unlinked; last the backplane,
--   unless ARGV[5] is ''
-- ARGV[3] token of the intent, '' for none  ARGV[4] its ttl_ms; 0 ends it
-- ARGV[5] what an agent's key begins with: the agents of an index are forgotten here. '' on a
--   cluster, where they lie on other slots: the caller forgets them, and publishes
-- ARGV[6] names for the backplane  ARGV[7] most events kept, about  ARGV[8] ttl_s of the stream
-- ARGV[9] ms for which an intent's end is remembered
-- returns {now_us, positions of the indexes that do not list every agent, agents of the indexes}
-- Intents are scored by their end, us. Those of an index have a member '' too: the time from which
-- loads count again. An index has a member '' if it overflowed. Runs where memory is full.
-- Everything is read before anything is written, so that an error leaves no half.
local indexes, intents, token = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local ttl_ms, open = tonumber(ARGV[4]), ARGV[5]
local names = ARGV[6] ~= '' and {ARGV[6]} or {}
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local standing, gone, lost, agents = {}, {}, {}, {}

for i = indexes + 1, indexes + intents do
  table.insert(standing, KEYS[i])
end
for i = indexes + intents + 1, #KEYS - (open ~= '' and 1 or 0) do
  table.insert(gone, KEYS[i])
end
for i = 1, indexes do
  local listed = redis.call('ZRANGE', KEYS[i], 0, -1)
  if listed[#listed] == '' then
    table.insert(lost, i)
  elseif #listed == 0 and not string.find(redis.call('INFO', 'stats'), 'evicted_keys:0\r') then
    table.insert(lost, i)
  end
  redis.call('ZCARD', KEYS[i] .. ':intents')
  for _, agent in ipairs(listed) do
    if agent ~= '' then
      table.insert(agents, agent)
      if open ~= '' then
        local key = open .. agent .. '}'
        table.insert(gone, key)
        table.insert(standing, key .. ':intents')
        table.insert(names, key)
      end
    end
  end
end
for _, key in ipairs(standing) do
  redis.call('ZCARD', key)
end

if open ~= '' and #names > 0 then
  -- A long event is worth less than what it makes every process read.
  local text = #names > 1000 and '*' or table.concat(names, '\n')
  redis.call('XADD', KEYS[#KEYS], 'MAXLEN', '~', ARGV[7], '*', 'i', text)
  redis.call('EXPIRE', KEYS[#KEYS], ARGV[8])
end
-- rule versions
for i = 1, #gone, 1000 do
  redis.call('UNLINK', unpack(gone, i, math.min(i + 999, #gone)))
end
-- end of rule

-- stand(key): add this intent to a sorted set, or take it away.
local function stand(key)
  if ttl_ms == 0 then
    redis.call('ZREM', key, token)
    return
  end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now_us)
  redis.call('ZADD', key, string.format('%.0f', now_us + ttl_ms * 1000), token)
  local left_ms = ttl_ms + tonumber(ARGV[9])
  if redis.call('PTTL', key) < left_ms then
    redis.call('PEXPIRE', key, string.format('%.0f', left_ms))
  end
end

if token ~= '' then
  for _, key in ipairs(standing) do
    stand(key)
  end
end
for i = 1, indexes do
  local key = KEYS[i] .. ':intents'
  if token ~= '' then
    stand(key)
  end
  redis.call('ZADD', key, 'GT', string.format('%.0f', now_us), '')
  if redis.call('PTTL', key) < tonumber(ARGV[9]) then
    redis.call('PEXPIRE', key, ARGV[9])
  end
  -- While another write is under way, its end must find them.
  if open ~= '' and redis.call('ZRANGE', key, -1, -1)[1] == '' then
    redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', '(+inf')
  end
end
return {string.format('%.0f', now_us), lost, agents}
