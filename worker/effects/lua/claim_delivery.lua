-- claim_delivery.lua: begin one attempt of a delivery and count it.
-- KEYS[1] delivery  KEYS[2] attempts (list of msgpack)
-- ARGV[1] the new attempt's record  ARGV[2] most records kept
-- returns false when there is no such delivery or it has ended
--       | {attempt >= 1, [field, value, ...]}
-- An attempt that a crash cut off stays in the list as it was begun.
local state = redis.call('HGET', KEYS[1], 'state')
if not state or state == 'delivered' or state == 'dead' then
  return false
end
redis.call('HSET', KEYS[1], 'state', 'sending')
redis.call('HDEL', KEYS[1], 'next')
local attempt = redis.call('HINCRBY', KEYS[1], 'attempts', 1)
redis.call('RPUSH', KEYS[2], ARGV[1])
redis.call('LTRIM', KEYS[2], -tonumber(ARGV[2]), -1)
return {attempt, redis.call('HGETALL', KEYS[1])}
