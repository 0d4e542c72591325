#!lua flags=allow-oom
-- beat.lua: store a sign of life on a full server, which refuses a plain SET.
-- KEYS[1] heartbeat, or arq's health key
-- ARGV[1] text  ARGV[2] ttl_ms > 0
-- returns 1
-- allow-oom: a worker on a full server is alive, and its supervisor must see it.
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
