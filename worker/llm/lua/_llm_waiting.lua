-- Shared step: add a request to the waiting list of its group, or update the sums after a removal.
-- p: prefix of the LLM keys (`arq:llm:`). Keys written: groups, pending:<gid>, sizes:<gid>

-- returns the number of waiting requests, their bytes, their tokens
local function add_sizes(sizes, bytes, tokens)
  local row = redis.call('HMGET', sizes, 'bytes', 'tokens')
  bytes = math.max(0, number_of(row[1], 0) + bytes)
  tokens = math.max(0, number_of(row[2], 0) + tokens)
  redis.call('HSET', sizes, 'bytes', bytes, 'tokens', tokens)
  return bytes, tokens
end
local function expect_waiting(p, gid)
  expect('list', p .. 'pending:' .. gid)
  expect('hash', p .. 'groups', p .. 'sizes:' .. gid)
end
local function start_waiting(p, gid, descriptor, id, bytes, tokens, command)
  local count = redis.call(command, p .. 'pending:' .. gid, id)
  if count == 1 then
    redis.call('HSET', p .. 'groups', gid, descriptor)
  end
  return count, add_sizes(p .. 'sizes:' .. gid, number_of(bytes, 0), number_of(tokens, 0))
end

-- Removes a request from the list. It is searched only near both ends, for a search takes as long as
-- the list is long. In the middle its id stays, and seal_batch.lua skips it.
local function leave_line(pending, id)
  if redis.call('LPOS', pending, id, 'MAXLEN', 1000) then
    redis.call('LREM', pending, 1, id)
  elseif redis.call('LPOS', pending, id, 'RANK', -1, 'MAXLEN', 1000) then
    redis.call('LREM', pending, -1, id)
  end
end

-- Subtracts `bytes` and `tokens` of requests that left the list from the group's sums.
local function stopped_waiting(p, gid, bytes, tokens)
  if redis.call('EXISTS', p .. 'pending:' .. gid) == 0 then
    redis.call('HDEL', p .. 'groups', gid)
    redis.call('DEL', p .. 'sizes:' .. gid)
  else
    add_sizes(p .. 'sizes:' .. gid, -number_of(bytes, 0), -number_of(tokens, 0))
  end
end
