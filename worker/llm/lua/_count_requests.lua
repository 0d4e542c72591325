-- Shared step: count how requests ended, by group. Needs types before it.
-- A series is "<provider>:<endpoint>:<model>"; the models of an endpoint beyond the most share "<other>".
-- The outcomes have the numbers of a job's (worker/queue/series.py).
-- A count that cannot be written is left out, whatever the reason.
--@include collect unchecked
local RETRIED, CANCELED = 2, 4
-- Upper limits of the buckets of times, ms: those of worker/queue/series.py.
local LIMITS_MS = {1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 60000, 120000, 300000, 900000,
  3600000}

local rows_of_group, now_ms = {}, nil  -- descriptor -> what this call counts of it

local function bucket_of(ms)
  local at = 1
  while LIMITS_MS[at] and ms > LIMITS_MS[at] do
    at = at + 1
  end
  return at - 1
end

-- group: its descriptor, or false  since: Unix ms of the submission; 1 or less: unknown
-- run: ms from the sending to this end; below 0: it was not sent
-- A request without both times counts without times.
local function count_request(group, outcome, since, run)
  group = group or ''
  if not now_ms then
    local t = redis.pcall('TIME')
    now_ms = t.err and -1 or t[1] * 1000 + math.floor(t[2] / 1000)
  end
  rows_of_group[group] = rows_of_group[group] or {}
  if run >= 0 and since > 1 then
    local wait = math.max(0, now_ms - since - run)
    collect(rows_of_group[group], 1, outcome, 0, bucket_of(run), bucket_of(wait), run * 1000, wait * 1000)
  else
    collect(rows_of_group[group], 1, outcome, 0, -1)
  end
end

-- p: prefix of the LLM keys. Call it once, after all that may fail.
local function count_requests(p)
  --@include series unchecked
  local rows = {}
  for group, cells in pairs(now_ms == -1 and {} or rows_of_group) do
    local fine, g = pcall(cmsgpack.unpack, group)
    if fine and type(g) == 'table' and g[3] then
      rows[g[1] .. ':' .. g[2] .. ':' .. g[3]] = cells
    end
  end
  pcall(count_rows, {base = p .. 'history', idle = 1440}, now_ms, rows, function(series)
    return string.match(series, '^[^:]*:[^:]*:') .. '<other>'
  end)
end
