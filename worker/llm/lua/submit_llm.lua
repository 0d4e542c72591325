#!lua
-- submit_llm.lua: store LLM requests of one group; enqueue a flush now when the group is full, and a
-- later one (by age) when they are the group's first.
-- KEYS[1] queue  KEYS[2] wake token
-- ARGV[1] prefix p of the LLM keys; written: request:<id>, dedupe:<digest>, batch:<id> (deadline),
-- groups, pending:<gid>, sizes:<gid>, those of _llm_callback.lua, and those of the flushes' jobs
-- ARGV[2] group id  ARGV[3] group descriptor  ARGV[4] dedupe: 1 | 0  ARGV[5] deadline, Unix ms, or ''
-- ARGV[6] most requests of a batch  ARGV[7] most bytes  ARGV[8] most tokens, 0 none  ARGV[9] max age ms
-- ARGV[10] now-job id  ARGV[11] now-job body  ARGV[12] age-job id  ARGV[13] age-job body
-- ARGV[14] webhook to notify of their ends, or ''  ARGV[15] body of the job that sends it
-- ARGV[16..] request id, digest, body, tokens, ...: at most 500 requests. A large body was sent before, in a
-- hash: then `body` is the key of the hash, and `tokens` begins with '-'
-- returns each caller's id: the new request's, or "<equal request's id>.<suffix>"; the suffix is the last
-- 16 characters of the new id
-- Each caller has a field `by:<suffix>` in the request ('by:' for the first caller): when it submitted, Unix
-- ms, or 0 once that caller has canceled.
-- no allow-oom: it adds requests.
--@rights of writes HGET HLEN TIME
--@include types
--@include put_job
--@include put_value
--@include expect_staged
--@include llm_callback
local p, gid, deadline, webhook = ARGV[1], ARGV[2], ARGV[5], ARGV[14]
local most, most_bytes, most_tokens = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])
local pending, sizes, now = p .. 'pending:' .. gid, p .. 'sizes:' .. gid, server_ms()

local function is_full(requests, bytes, tokens)
  return requests >= most or bytes >= most_bytes or (most_tokens > 0 and tokens >= most_tokens)
end

local waiting, row = expect('list', pending), allowed(redis.pcall('HMGET', sizes, 'bytes', 'tokens'))
if row.err then
  expect('hash', sizes)
end
local bytes_waiting, tokens_waiting = number_of(row[1], 0), number_of(row[2], 0)
-- Most calls neither start a group nor fill it: only the others need the types of these keys. Equal
-- requests are counted too, so more may be checked than is written.
local is_first, requests, bytes, tokens = waiting == 0, waiting, bytes_waiting, tokens_waiting
for i = 16, #ARGV, 4 do
  local size, more = #ARGV[i + 2], ARGV[i + 3]
  if string.sub(more, 1, 1) == '-' then
    expect_staged({ARGV[i + 2]})
    size, more = redis.call('HSTRLEN', ARGV[i + 2], 'body'), string.sub(more, 2)
  end
  requests, bytes, tokens = requests + 1, bytes + size, tokens + number_of(more, 0)
end
if is_first then
  expect('hash', p .. 'groups')
end
if is_first or webhook ~= '' or is_full(requests, bytes, tokens) then
  expect('zset', KEYS[1], KEYS[2])
end

local function bring_forward(key, field)
  local known = number_of(redis.call('HGET', key, field))
  if deadline ~= '' and (not known or tonumber(deadline) < known) then
    redis.call('HSET', key, field, deadline)
  end
end

-- A shared request expires with the latest deadline of its callers.
local function put_off(key)
  local known = number_of(redis.call('HGET', key, 'expires'))
  if known and (deadline == '' or tonumber(deadline) > known) then
    redis.call('HSET', key, 'expires', deadline)
  end
end

-- Finds an equal request that is unanswered, or whose answer is still cached; else marks this one for
-- the equal ones to come.
local function twin_of(mark, id)
  local twin = redis.pcall('SET', mark, id, 'NX', 'GET')
  if not twin then
    return nil
  elseif type(twin) ~= 'string' then
    redis.call('SET', mark, id)
    return nil
  end
  local key = p .. 'request:' .. twin
  if redis.call('EXISTS', key) == 1 and fits('hash', key) then
    if redis.call('HSETNX', key, 'by:' .. string.sub(id, -16), now) == 1 then
      redis.call('HSET', key, 'callers', number_of(redis.call('HGET', key, 'callers'), 1) + 1)
    end
    bring_forward(key, 'deadline')
    put_off(key)
    local batch = redis.call('HGET', key, 'batch')
    if batch and fits('hash', p .. 'batch:' .. batch) then
      bring_forward(p .. 'batch:' .. batch, 'deadline')
    end
    return twin
  end
  if redis.call('EXISTS', p .. 'result:' .. twin) == 1 then
    return twin
  end
  redis.call('SET', mark, id)
  return nil
end

local new = {}

local function take_in(id, digest, body, tokens)
  local key = p .. 'request:' .. id
  if redis.call('EXISTS', key, p .. 'result:' .. id) > 0 then
    return id
  end
  local mark = p .. 'dedupe:' .. digest
  if ARGV[4] == '1' then
    local twin = twin_of(mark, id)
    if twin then
      return twin, string.sub(id, -16)
    end
  end
  local more = ARGV[4] == '1' and {'dedupe', digest} or {}
  if deadline ~= '' then
    more[#more + 1], more[#more + 2], more[#more + 3], more[#more + 4] = 'deadline', deadline, 'expires', deadline
  end
  -- First the list: an id without a request is skipped, a request that is in no list would wait for ever.
  redis.call('RPUSH', pending, id)
  local size = #body
  if string.sub(tokens, 1, 1) == '-' then
    tokens, size = string.sub(tokens, 2), redis.call('HSTRLEN', body, 'body')
    put_value(key, {body})
  else
    more[#more + 1], more[#more + 2] = 'body', body
  end
  redis.call('HSET', key, 'group', ARGV[3], 'gid', gid, 'bytes', size, 'tokens', tokens,
    'callers', 1, 'by:', now, unpack(more))
  new[#new + 1] = id
  bytes_waiting, tokens_waiting = bytes_waiting + size, tokens_waiting + number_of(tokens, 0)
  return id
end

local function flush(id, body, due)
  local base = string.sub(p, 1, -5)
  put_job(KEYS[1], base .. 'job:' .. id, base .. 'result:' .. id, KEYS[2], id, body, due)
end

local ids = {}
for i = 16, #ARGV, 4 do
  local id, caller = take_in(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
  local suffix = caller and '.' .. caller or ''
  ids[#ids + 1] = id .. suffix
  if webhook ~= '' then
    if not fits('hash', p .. 'callback:' .. id) then
      redis.call('DEL', p .. 'callback:' .. id)
    end
    if redis.call('EXISTS', p .. 'request:' .. id) == 1 then
      redis.call('HSET', p .. 'callback:' .. id, webhook .. suffix, ARGV[15])
    else
      local nth = number_of(redis.call('HGET', p .. 'callback:' .. id, '#'), 1)
      put_callback(p, id, nth, webhook .. suffix, ARGV[15])
    end
  end
end
if #new > 0 then
  waiting = waiting + #new
  redis.call('HSET', sizes, 'bytes', bytes_waiting, 'tokens', tokens_waiting)
  if is_first then
    redis.call('HSET', p .. 'groups', gid, ARGV[3])
    flush(ARGV[12], ARGV[13], now + tonumber(ARGV[9]))
  end
  if is_full(waiting, bytes_waiting, tokens_waiting) then
    flush(ARGV[10], ARGV[11], now)
  end
end
return ids
