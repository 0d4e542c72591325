#!lua flags=allow-oom
-- publish.lua: add an event to the backplane, also where memory is full: it is bounded, and an
-- invalidation that cannot be told would close the cache.
-- KEYS[1] stream  ARGV[1] most events kept, about  ARGV[2] ttl_s  ARGV[3] kind  ARGV[4] names
-- returns 1
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', ARGV[3], ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
