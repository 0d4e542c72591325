-- Shared step: which ends of a poll were not as its worker has grouped them. It is included in poll.lua.

-- returns by number of a group: its ends that were late, or that the server made dead letters of
local function not_as_grouped()
  local lost = {}
  local function lose(i)
    local group = ends[i][6]
    if group then
      lost[group] = (lost[group] or 0) + 1
    end
    return group
  end
  for _, i in ipairs(late) do
    lose(i)
  end
  for _, i in ipairs(buried) do
    local group = ends[i][1] == 'park' and lose(i)
    if group then
      groups[#groups + 1] = {groups[group][1], groups[group][2], 3, groups[group][4], 1, -1, 0, 0, 0}
    end
  end
  return lost
end
