-- enqueue.lua: store one job and put it in its queue.
-- KEYS[1] queue  KEYS[2] job body  KEYS[3] result  KEYS[4] wake token
-- ARGV[1] id  ARGV[2] body  ARGV[3] delay_ms >= 0  ARGV[4] due Unix ms, or '' for now + delay
-- returns 1 stored | 0 a job of this id waits or runs already
--@include put_job
local due = tonumber(ARGV[4]) or (server_ms() + tonumber(ARGV[3]))
return put_job(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1], ARGV[2], due)
