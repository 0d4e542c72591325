#!lua
-- answer_llm.lua: store answers of requests, each once (the first one stays), then notify their callers.
-- KEYS[1] the first request
-- ARGV[1] prefix p of the LLM keys (see _llm_finish.lua)  ARGV[2] ttl_ms  ARGV[3] ttl_ms for equal requests, 0 none
-- ARGV[4] usage's ttl_ms  ARGV[5] the batch that the answers came from, or ''
-- ARGV[6] ms from the sending to the answers; below 0: they were not sent
-- ARGV[7..] of each: request id, answer, ok: 1 | 0, outcome in the history's number, input, output, cached and
--   reasoning tokens, key of a long answer that was sent before in pieces (worker/llm/stored_answers.py) or ''
-- returns of each: 1 stored | 2 stored, and it has callbacks: call callbacks_llm.lua | 0 answered already, no such
--   request, or that batch never contained it | -1 a key of another type refused it
-- no allow-oom: an answer may be larger than the request that it replaces; it is sent again.
--@rights of writes GET HLEN LLEN LPOS EXISTS HGET ZCARD
--@include types
--@include llm_waiting
--@include count_requests unchecked
--@include llm_finish
local function answer(at)
  local part = ARGV[at + 8] ~= '' and ARGV[at + 8] or nil
  if part and redis.call('EXISTS', part) == 0 then
    -- Another run stored it, or this call is sent again after its reply was lost.
    return 0
  end
  local ended = finish_llm(ARGV[1], ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[2], ARGV[3], ARGV[4],
    {input = ARGV[at + 4], output = ARGV[at + 5], cached = ARGV[at + 6], reasoning = ARGV[at + 7]}, ARGV[5],
    tonumber(ARGV[at + 3]), tonumber(ARGV[6]), part)
  if part then
    redis.call('UNLINK', part)
  end
  return ended
end

local codes, failed = {}, nil
for at = 7, #ARGV, 9 do
  local fine, code = pcall(answer, at)
  if not fine and not (type(code) == 'table' and string.find(code.err or '', 'WRONGTYPE', 1, true)) then
    failed = code
    break
  end
  codes[#codes + 1] = fine and code or -1
end
count_requests(ARGV[1])
if failed then
  -- The call that is sent again ends the others.
  error(failed)
end
return codes
