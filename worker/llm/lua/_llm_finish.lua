-- Shared step: a request's answer is stored, once; the first one stays. Then the waiters are told.
-- p: what the LLM keys begin with; keys: request:<id>, result:<id>, failed:<id>, batch:<bid>,
-- open:<bid>, usage:<gid>, single, the equal request's mark, those of _llm_callback.lua, and with
-- `waiting` pending, sizes, groups
-- data: the answer; ok: '1' | '0'; ttl, cache_ttl, usage_ttl: ms; usage: {input, output, cached, reasoning}
-- line_of: the batch whose line it is, which must have carried the request; '' when it is no batch's
-- An answer that several share is stored behind an `s`: no reader shortens its life for the others.
-- returns 1 stored | 0 answered already, no such request, or not of that batch; stands after _put_job.lua, _llm_callback.lua, _llm_waiting.lua
local function finish_llm(p, id, data, ok, ttl, cache_ttl, usage_ttl, usage, line_of)
  local key = p .. 'request:' .. id
  local row = redis.call('HMGET', key, 'gid', 'batch', 'dedupe', 'bytes', 'tokens', 'single', 'callers', 'left:' .. line_of)
  if not row[1] or (line_of ~= '' and row[2] ~= line_of and not row[8]) then
    return 0
  end
  if tonumber(row[7] or 1) > 1 then
    data = 's' .. data
  end
  redis.call('SET', p .. 'result:' .. id, data, 'PX', ttl)
  -- The next equal request is a new one, unless answers are kept for it.
  if row[3] and redis.call('GET', row[3]) == id then
    if ok == '1' and tonumber(cache_ttl) > 0 then
      redis.call('PEXPIRE', row[3], cache_ttl)
    else
      redis.call('DEL', row[3])
    end
  end
  local counts = {p .. 'usage:' .. row[1]}
  if row[2] then
    counts[2] = p .. 'batch:' .. row[2]
    redis.call('SREM', p .. 'open:' .. row[2], id)
  elseif row[6] then
    redis.call('ZREM', p .. 'single', id)
  elseif redis.call('LREM', p .. 'pending:' .. row[1], 1, id) == 1 then
    stopped_waiting(p, row[1], row[4], row[5])
  end
  for _, counted in ipairs(counts) do
    redis.call('HINCRBY', counted, ok == '1' and 'succeeded' or 'failed', 1)
    for name, number in pairs(usage) do
      if tonumber(number) > 0 then
        redis.call('HINCRBY', counted, name, number)
      end
    end
  end
  redis.call('PEXPIRE', counts[1], usage_ttl)
  if ok == '1' then
    redis.call('UNLINK', key)
  else
    redis.call('RENAME', key, p .. 'failed:' .. id)
    redis.call('PEXPIRE', p .. 'failed:' .. id, ttl)
  end
  callback(p, id, ok, ttl)
  redis.call('PUBLISH', p .. 'answered', id)
  return 1
end
