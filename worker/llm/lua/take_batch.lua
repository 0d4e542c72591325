#!lua flags=allow-oom
-- take_batch.lua: begin a run of a batch: raise its epoch, so that no earlier run can move it.
-- KEYS[1] batch
-- returns its fields and values, flat; empty when there is none. An ended batch keeps its epoch.
-- allow-oom: a batch under way must end, which makes room.
--@rights
--@include types
local row = redis.call('HMGET', KEYS[1], 'state', 'epoch')
local state = row[1]
if state and state ~= 'done' and state ~= 'failed' then
  redis.call('HSET', KEYS[1], 'epoch', number_of(row[2], 0) + 1)
end
return redis.call('HGETALL', KEYS[1])
