-- Shared step: store a request's answer once (the first one stays), then notify its callers.
-- Needs types, llm_waiting and count_requests before it.
-- p: prefix of the LLM keys. Keys: request:<id>, result:<id>, failed:<id>, batch:<bid>, open:<bid>,
-- usage:<gid>, single, dedupe:<digest>, answered (channel), callbacks, callback:<id> (webhook -> job body,
-- '#': number of the end), those of _llm_waiting.lua and of the history
-- data: the answer; ok: '1' | '0'; ttl, cache_ttl, usage_ttl: ms; usage: {input, output, cached, reasoning}
-- line_of: the batch that the answer came from, which must have contained the request; '' for no batch
-- outcome, run: as of _count_requests.lua
-- part: the key of a long answer that was sent before, or nil; then data is ''
-- An answer shared by several callers gets the prefix `s`: a reader must not shorten its lifetime.
-- Keys of another type around the request are skipped: the answer is stored in any case.
-- returns 1 stored | 2 stored, and it has callbacks | 0 answered already, no such request, or not of that batch
local function count_end(counted, ok, usage)
  local names, more = {ok == '1' and 'succeeded' or 'failed'}, {1}
  for name, number in pairs(usage) do
    if number_of(number, 0) > 0 then
      names[#names + 1], more[#more + 1] = name, number_of(number)
    end
  end
  local row, flat = allowed(redis.pcall('HMGET', counted, unpack(names))), {}
  if row.err then
    return
  end
  for i, name in ipairs(names) do
    flat[2 * i - 1], flat[2 * i] = name, string.format('%.0f', number_of(row[i], 0) + more[i])
  end
  redis.call('HSET', counted, unpack(flat))
end
-- A request may have any number of callbacks. The end only lists the request; callbacks_llm.lua
-- enqueues the jobs, a bounded number per call. A key of another type is deleted.
-- returns 1 it has callbacks | 0
local function callback(p, id, ok, ttl)
  local key, list = p .. 'callback:' .. id, p .. 'callbacks'
  local count = allowed(redis.pcall('HLEN', key))
  if count == 0 then
    return 0
  end
  if type(count) ~= 'number' then
    redis.call('DEL', key)
    return 0
  end
  local nth = number_of(redis.call('HGET', key, '#'), 0) + 1
  redis.call('HSET', key, '#', nth)
  if ok ~= '1' then
    redis.call('PEXPIRE', key, ttl)
  end
  if not fits('list', list) then
    redis.call('DEL', list)
  end
  redis.call('RPUSH', list, id .. ':' .. string.format('%.0f', nth) .. ':' .. ok .. ':0')
  return 1
end

local function finish_llm(p, id, data, ok, ttl, cache_ttl, usage_ttl, usage, line_of, outcome, run, part)
  local key = p .. 'request:' .. id
  local row = fields_of(key, 'gid', 'batch', 'dedupe', 'bytes', 'tokens', 'single', 'callers', 'left:' .. line_of,
    'group', 'by:')
  if not row[1] or (line_of ~= '' and row[2] ~= line_of and not row[8]) then
    return 0
  end
  local result, is_shared = p .. 'result:' .. id, number_of(row[7], 1) > 1
  if part then
    if is_shared then
      redis.call('SETRANGE', part, 0, 's')
    end
    redis.call('RENAME', part, result)
    redis.call('PEXPIRE', result, ttl)
  else
    redis.call('SET', result, (is_shared and 's' or '') .. data, 'PX', ttl)
  end
  -- Without a cache time the next equal request is sent again.
  -- Development versions of 0.1 stored the key, which ends with the digest.
  local mark = row[3] and p .. 'dedupe:' .. string.match(row[3], '[^:]*$')
  if mark and text_of(mark) == id then
    if ok == '1' and tonumber(cache_ttl) > 0 then
      redis.call('PEXPIRE', mark, cache_ttl)
    else
      redis.call('DEL', mark)
    end
  end
  local counts = {p .. 'usage:' .. row[1]}
  if row[2] then
    counts[2] = p .. 'batch:' .. row[2]
    allowed(redis.pcall('SREM', p .. 'open:' .. row[2], id))
  elseif row[6] then
    allowed(redis.pcall('ZREM', p .. 'single', id))
  elseif fits('hash', p .. 'sizes:' .. row[1]) and fits('hash', p .. 'groups')
      and fits('list', p .. 'pending:' .. row[1]) then
    leave_line(p .. 'pending:' .. row[1], id)
    stopped_waiting(p, row[1], row[4], row[5])
  end
  for _, counted in ipairs(counts) do
    count_end(counted, ok, usage)
  end
  redis.call('PEXPIRE', counts[1], usage_ttl)
  -- A right to a command may be taken away at any time. The request goes last: until then, the call that
  -- is sent again writes all of it.
  local has_callbacks = callback(p, id, ok, ttl)
  if ok == '1' then
    redis.call('UNLINK', key)
  else
    redis.call('RENAME', key, p .. 'failed:' .. id)
    redis.call('PEXPIRE', p .. 'failed:' .. id, ttl)
  end
  count_request(row[9], outcome, number_of(row[10], 0), run)
  redis.call('PUBLISH', p .. 'answered', id)
  return 1 + has_callbacks
end
