#!lua flags=allow-oom
-- count_unanswered.lua: count a direct call that succeeded without an answer, once for each run.
-- KEYS[1] request
-- ARGV[1] number of the job's run
-- returns how many such calls there were; 0 when the request has ended
-- allow-oom: a call that is not counted would be bought again.
--@rights
--@include types
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local row = redis.call('HMGET', KEYS[1], 'unanswered', 'unanswered_by')
local count = number_of(row[1], 0)
if row[2] ~= ARGV[1] then
  count = count + 1
  redis.call('HSET', KEYS[1], 'unanswered', count, 'unanswered_by', ARGV[1])
end
return count
