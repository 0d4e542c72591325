-- take_batch.lua: begin a run of a batch: raise its epoch, so that no earlier run can move it again.
-- KEYS[1] batch
-- returns its fields and values, flat; empty when there is none. One that has ended keeps its epoch.
local state = redis.call('HGET', KEYS[1], 'state')
if state and state ~= 'done' and state ~= 'failed' then
  redis.call('HINCRBY', KEYS[1], 'epoch', 1)
end
return redis.call('HGETALL', KEYS[1])
