#!lua flags=allow-oom
-- stage_part.lua: send a piece of a large body ahead of the script that stores it, on a full server.
-- KEYS[1] the key of the body
-- ARGV[1] offset of the piece  ARGV[2] the piece, at most 256 KiB  ARGV[3] ttl_ms
-- returns 1. A piece has its place, so a call that is sent again changes nothing.
-- allow-oom: what ends jobs makes room; a plain SET is refused there, and a whole body would hold the server.
--@rights
redis.call('SETRANGE', KEYS[1], ARGV[1], ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return 1
