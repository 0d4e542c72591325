-- Shared step: where what is held waits: HELD ms after its due time, where no poll looks. Needs types before it.
local HELD = 1000000000000000
-- Jobs that one script holds or gives back.
local MOST_HELD = 500

-- Whole numbers above 10^14 would lose digits in Lua's own text.
local function held_at(due)
  return string.format('%.0f', number_of(due, 0) + HELD)
end
