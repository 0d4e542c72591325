#!lua flags=allow-oom
-- publish.lua: add an event to the backplane.
-- KEYS[1] stream  ARGV[1] most events kept, about  ARGV[2] ttl_s  ARGV[3] kind  ARGV[4] names
-- returns 1
-- allow-oom: the stream is bounded, and the cache is bypassed until each invalidation is
-- published.
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', ARGV[3], ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
