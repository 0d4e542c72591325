#!lua flags=allow-oom
-- forget.lua: forget what is named, and begin, renew or end an intent to change it.
-- KEYS: first ARGV[1] indexes, then ARGV[2] intents, then ARGV[11] to unlink, then the backplane,
--   unless ARGV[5] is ''
-- ARGV[3] token of the intent, '' for none  ARGV[4] its ttl_ms; 0 ends it
-- ARGV[5] what an agent's key begins with; '' on a cluster, where the agents of an index lie on
--   other slots, and the caller publishes
-- ARGV[6] names for the backplane  ARGV[7] most events kept, about  ARGV[8] ttl_s of the stream
-- ARGV[9] ms for which an intent's end is remembered
-- ARGV[10] most agents of indexes that are forgotten here, all together; 0 on a cluster
-- returns {now_us, agents of the indexes that were forgotten here, positions of the indexes that do
--   not list every agent, positions of those whose agents the caller has to forget, and up to which
--   score: those that are recorded from here on are newer}
-- Intents are scored by their end, us. Those of an index have a member '' too: the time from which
-- loads count again. An index has a member '' if it overflowed.
-- Everything is read before anything is written, so that an error leaves no half.
-- allow-oom: nothing stale may be served because memory is full.
local indexes, intents, token = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local ttl_ms, open, room = tonumber(ARGV[4]), ARGV[5], tonumber(ARGV[10])
local backplane = indexes + intents + tonumber(ARGV[11]) + 1
local names = ARGV[6] ~= '' and {ARGV[6]} or {}
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local standing = {unpack(KEYS, indexes + 1, indexes + intents)}
local gone = {unpack(KEYS, indexes + intents + 1, backplane - 1)}
local lost, agents = {}, {}
local left, rest, highest, evicted = {}, {}, now_us, nil

-- incomplete(key, count): whether the index may lack agents: it overflowed, or was perhaps evicted.
local function incomplete(key, count)
  if count > 0 then
    return redis.call('ZSCORE', key, '')
  end
  if evicted == nil then
    evicted = not string.find(redis.call('INFO', 'stats'), 'evicted_keys:0\r')
  end
  return evicted
end

for i = 1, indexes do
  local count = redis.call('ZCARD', KEYS[i])
  redis.call('ZCARD', KEYS[i] .. ':intents')
  if incomplete(KEYS[i], count) then
    table.insert(lost, i)
    rest[i] = true
  end
  if count > room then
    table.insert(left, i)
    rest[i] = true
    highest = math.max(highest, tonumber(redis.call('ZRANGE', KEYS[i], -1, -1, 'WITHSCORES')[2]))
  else
    room = room - count
    for _, agent in ipairs(redis.call('ZRANGE', KEYS[i], 0, -1)) do
      if agent ~= '' then
        local key = open .. agent .. '}'
        table.insert(agents, agent)
        table.insert(gone, key)
        table.insert(standing, key .. ':intents')
        table.insert(names, key)
      end
    end
  end
end
local empty = {}
for _, key in ipairs(standing) do
  empty[key] = redis.call('ZCARD', key) == 0
end

if open ~= '' and #names > 0 then
  redis.call('XADD', KEYS[backplane], 'MAXLEN', '~', ARGV[7], '*', 'i', table.concat(names, '\n'))
  redis.call('EXPIRE', KEYS[backplane], ARGV[8])
end
-- rule versions
if #gone > 0 then
  redis.call('UNLINK', unpack(gone))
end
-- end of rule

local ends_us, left_ms = string.format('%.0f', now_us + ttl_ms * 1000), ttl_ms + tonumber(ARGV[9])

-- stand(key): add this intent to a sorted set, or take it away.
local function stand(key)
  if ttl_ms == 0 then
    redis.call('ZREM', key, token)
    return
  end
  if not empty[key] then
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now_us)
  end
  redis.call('ZADD', key, ends_us, token)
  if empty[key] or redis.call('PTTL', key) < left_ms then
    redis.call('PEXPIRE', key, left_ms)
  end
end

if token ~= '' then
  for _, key in ipairs(standing) do
    stand(key)
  end
end
for i = 1, indexes do
  local key = KEYS[i] .. ':intents'
  -- rule index_intent
  if token ~= '' then
    stand(key)
  end
  -- end of rule
  redis.call('ZADD', key, 'GT', string.format('%.0f', now_us), '')
  if redis.call('PTTL', key) < tonumber(ARGV[9]) then
    redis.call('PEXPIRE', key, ARGV[9])
  end
  -- While another write is under way, its end must find them.
  if not rest[i] and redis.call('ZRANGE', key, -1, -1)[1] == '' then
    redis.call('UNLINK', KEYS[i])
  end
end
return {string.format('%.0f', now_us), agents, lost, left, string.format('%.0f', highest)}
