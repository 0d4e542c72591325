#!lua flags=allow-oom
-- switch.lua: switch a repeating job or a cron off, or on again.
-- KEYS[1] schedules  KEYS[2] their jobs  KEYS[3] last ticks of crons  KEYS[4] crons that are off  KEYS[5] wake token
-- ARGV[1] a schedule's id or a cron's name  ARGV[2] 1: on | 0: off  ARGV[3] the schedule's interval, ms; 0: by a cron
-- returns 1 changed | 0 it was so already | -1 nothing has this name
-- A schedule that is off is held (_held.lua). What both missed while they were off is not made good: a due time
-- that has passed moves to the next one of its interval, of a cron to 0, as of a new one (schedule.lua).
-- allow-oom: a full server must obey its operator.
--@rights
--@include types
--@include held
expect('zset', KEYS[1], KEYS[5])
expect('hash', KEYS[2], KEYS[3], KEYS[4])
local name, on, every = ARGV[1], ARGV[2] == '1', tonumber(ARGV[3])
local due = redis.call('HEXISTS', KEYS[2], name) == 1 and redis.call('ZSCORE', KEYS[1], name)
local is_cron = redis.call('HEXISTS', KEYS[3], name) == 1
if not due and not is_cron then
  return -1
end
local t = redis.call('TIME')
local now, changed = t[1] * 1000 + math.floor(t[2] / 1000), 0
local is_held = due and number_of(due, 0) >= HELD
if due and not on and not is_held then
  redis.call('ZADD', KEYS[1], held_at(due), name)
  changed = 1
elseif is_held and on then
  due = number_of(due) - HELD
  if due <= now then
    due = every > 0 and due + every * (math.floor((now - due) / every) + 1) or 0
  end
  redis.call('ZADD', KEYS[1], string.format('%.0f', due), name)
  redis.call('ZADD', KEYS[5], 0, 'w')
  changed = 1
end
if is_cron and not on then
  changed = math.max(changed, redis.call('HSETNX', KEYS[4], name, now))
elseif is_cron and redis.call('HEXISTS', KEYS[4], name) == 1 then
  -- Else a worker would take the ticks since the last one for missed.
  redis.call('HSET', KEYS[3], name, now)
  redis.call('HDEL', KEYS[4], name)
  changed = 1
end
return changed
