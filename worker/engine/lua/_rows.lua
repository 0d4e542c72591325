-- Shared step: add rows of claimed jobs to a poll's reply. Needs body before it, and is included in poll.lua.
local function names(kind, ids)
  local keys = {}
  for i = 1, #ids do
    keys[i] = prefix .. kind .. ids[i]
  end
  return keys
end

local function add_rows(ids, claims)
  local tries = redis.call('MGET', unpack(names('retry:', ids)))
  local marks = marked and redis.call('ZMSCORE', KEYS[7], unpack(ids)) or {}
  local at = #rows
  for i = 1, #ids do
    rows[at + 1], rows[at + 2] = ids[i], body_of(prefix .. 'job:' .. ids[i])
    rows[at + 3], rows[at + 4], rows[at + 5] = tries[i], claims[i], marks[i] or false
    at = at + 5
  end
end
