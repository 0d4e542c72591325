-- count_unanswered.lua: count a direct call that succeeded without an answer.
-- KEYS[1] request
-- returns how many there were; 0 when the request has ended
--@include types
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local count = number_of(redis.call('HGET', KEYS[1], 'unanswered'), 0) + 1
redis.call('HSET', KEYS[1], 'unanswered', count)
return count
