#!lua flags=allow-oom
-- leave.lua: delete the keys of a worker that ends.
-- KEYS[1] its heartbeat  KEYS[2] workers  KEYS[3] listener  KEYS[4] health key  KEYS[5] its last poll
-- ARGV[1] worker id  ARGV[2] 1: the last worker also deletes the health key | 0: it stays
-- returns how many workers are left
-- Its waker's last poll stays until its TTL: a wake poll that still arrives must find it.
-- allow-oom: it only deletes.
--@rights
--@include types
expect('zset', KEYS[2])
redis.call('DEL', KEYS[1], KEYS[5])
redis.call('ZREM', KEYS[2], ARGV[1])
if text_of(KEYS[3]) == ARGV[1] then
  redis.call('DEL', KEYS[3])
end
local left = redis.call('ZCARD', KEYS[2])
-- All workers share arq's health key, so the last one deletes it.
if left == 0 and ARGV[2] == '1' then
  redis.call('DEL', KEYS[4])
end
return left
