#!lua
-- answer_llm.lua: store a request's answer once (the first one stays), then notify its callers.
-- KEYS[1] request  KEYS[2] a long answer, sent before in pieces (worker/llm/stored_answers.py)
-- ARGV[1] prefix p of the LLM keys (see _llm_finish.lua)  ARGV[2] request id  ARGV[3] answer
-- ARGV[4] ok: 1 | 0  ARGV[5] ttl_ms  ARGV[6] ttl_ms for equal requests, 0 none  ARGV[7] usage's ttl_ms
-- ARGV[8] input  ARGV[9] output  ARGV[10] cached  ARGV[11] reasoning tokens
-- ARGV[12] the batch that the answer came from, or ''  ARGV[13] the answer is in KEYS[2]: 1 | 0
-- returns 1 stored | 2 stored, and it has callbacks: call callbacks_llm.lua | 0 answered already, no such
--   request, or that batch never contained it
-- no allow-oom: an answer may be larger than the request that it replaces; it is sent again.
--@rights of writes GET HLEN LLEN LPOS EXISTS HGET ZCARD
--@include types
--@include llm_waiting
--@include llm_finish
local part = ARGV[13] == '1' and KEYS[2] or nil
if part and redis.call('EXISTS', part) == 0 then
  -- Another run stored it, or this call is sent again after its reply was lost.
  return 0
end
local ended = finish_llm(ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7],
  {input = ARGV[8], output = ARGV[9], cached = ARGV[10], reasoning = ARGV[11]}, ARGV[12], part)
if part then
  redis.call('UNLINK', part)
end
return ended
