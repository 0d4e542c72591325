-- submit_llm.lua: store LLM requests of one group; enqueue a flush now when the group is full, and a
-- later one (by age) when they are the group's first.
-- KEYS[1] queue  KEYS[2] wake token  KEYS[3] now-job body  KEYS[4] now-job result
-- KEYS[5] age-job body  KEYS[6] age-job result
-- ARGV[1] prefix p of the LLM keys; written: request:<id>, dedupe:<digest>, batch:<id> (deadline),
-- groups, pending:<gid>, sizes:<gid>, those of _llm_callback.lua
-- ARGV[2] group id  ARGV[3] group descriptor  ARGV[4] dedupe: 1 | 0  ARGV[5] deadline, Unix ms, or ''
-- ARGV[6] most requests of a batch  ARGV[7] most bytes  ARGV[8] most tokens, 0 none  ARGV[9] max age ms
-- ARGV[10] now-job id  ARGV[11] now-job body  ARGV[12] age-job id  ARGV[13] age-job body
-- ARGV[14] webhook to notify of their ends, or ''  ARGV[15] body of the job that sends it
-- ARGV[16..] request id, digest, body, tokens, ...: at most 500 requests
-- returns each caller's id: the new request's, or "<equal request's id>.<suffix>"; the suffix is the last
-- 16 characters of the new id
-- Each caller has a field `by:<suffix>` in the request ('by:' for the first caller): 1, or 0 once that
-- caller has canceled.
--@include types
--@include put_job
--@include llm_callback
--@include llm_waiting
local p, gid, deadline = ARGV[1], ARGV[2], ARGV[5]
local now = server_ms()
expect_callbacks(p)
expect_waiting(p, gid)

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

-- Finds an equal request that is unanswered, or whose answer is still cached.
local function twin_of(mark, id)
  local twin = text_of(mark)
  if not twin then
    return nil
  end
  local key = p .. 'request:' .. twin
  if redis.call('EXISTS', key) == 1 and fits('hash', key) then
    if redis.call('HSETNX', key, 'by:' .. string.sub(id, -16), 1) == 1 then
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
  return redis.call('EXISTS', p .. 'result:' .. twin) == 1 and twin or nil
end

local first, waiting, bytes_waiting, tokens_waiting = false, 0, 0, 0

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
    redis.call('SET', mark, id)
  end
  redis.call('HSET', key, 'body', body, 'group', ARGV[3], 'gid', gid, 'created', now,
    'deadline', deadline, 'expires', deadline, 'bytes', #body, 'tokens', tokens, 'callers', 1, 'by:', 1,
    unpack(ARGV[4] == '1' and {'dedupe', mark} or {}))
  waiting, bytes_waiting, tokens_waiting = start_waiting(p, gid, ARGV[3], id, #body, tokens, 'RPUSH')
  first = first or waiting == 1
  return id
end

local ids = {}
for i = 16, #ARGV, 4 do
  local id, caller = take_in(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
  local suffix = caller and '.' .. caller or ''
  ids[#ids + 1] = id .. suffix
  if ARGV[14] ~= '' then
    if not fits('hash', p .. 'callback:' .. id) then
      redis.call('DEL', p .. 'callback:' .. id)
    end
    if redis.call('EXISTS', p .. 'request:' .. id) == 1 then
      redis.call('HSET', p .. 'callback:' .. id, ARGV[14] .. suffix, ARGV[15])
    else
      local nth = number_of(redis.call('HGET', p .. 'callback:' .. id, '#'), 1)
      put_callback(p, id, nth, ARGV[14] .. suffix, ARGV[15])
    end
  end
end
if first then
  put_job(KEYS[1], KEYS[5], KEYS[6], KEYS[2], ARGV[12], ARGV[13], now + tonumber(ARGV[9]))
end
local most_tokens = tonumber(ARGV[8])
if waiting > 0 and (waiting >= tonumber(ARGV[6]) or bytes_waiting >= tonumber(ARGV[7])
    or (most_tokens > 0 and tokens_waiting >= most_tokens)) then
  put_job(KEYS[1], KEYS[3], KEYS[4], KEYS[2], ARGV[10], ARGV[11], now)
end
return ids
