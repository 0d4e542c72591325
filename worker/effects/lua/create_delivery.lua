-- create_delivery.lua: store a webhook delivery and its job, both or neither.
-- KEYS[1] delivery  KEYS[2] queue  KEYS[3] job body  KEYS[4] result  KEYS[5] wake token
-- ARGV[1] job id  ARGV[2] job body  ARGV[3] delay_ms >= 0  ARGV[4..] field, value, ... of the delivery
-- returns 1 stored | 0 a delivery of this id exists already, nothing written
--@include put_job
if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local now = server_ms()
local due = now + tonumber(ARGV[3])
redis.call('HSET', KEYS[1], 'state', 'pending', 'attempts', 0, 'created', now, 'next', due, unpack(ARGV, 4))
put_job(KEYS[2], KEYS[3], KEYS[4], KEYS[5], ARGV[1], ARGV[2], due)
return 1
