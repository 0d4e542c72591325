-- Shared step: count how jobs ended, by function, priority and time. Needs collect and series before it.
-- A series is "<priority>:<function>"; one without an end for 30 days has lost its keys.
local PRIORITIES = {'critical', 'high', 'default', 'low'}

-- groups: of equal ends: {priority number, function, outcome number | 0, lapsed leases of each, ends,
--   run bucket | -1: none ran, wait bucket, us of all runs, us of all waits}
-- lost: number of a group -> ends of it that do not count
local function count_ends(prefix, now, groups, lost)
  local rows = {}
  for i, g in ipairs(groups) do
    local ends = g[5] - (lost[i] or 0)
    if ends > 0 then
      local series = PRIORITIES[g[1]] .. ':' .. g[2]
      rows[series] = rows[series] or {}
      collect(rows[series], ends, g[3], g[4], g[6], g[7], g[8] * ends / g[5], g[9] * ends / g[5])
    end
  end
  count_rows({base = prefix .. 'history', idle = 43200}, now, rows, function(series)
    return string.match(series, '^%l+:') .. '<other>'
  end)
end
