-- Shared step: collect ends in cells, for _series.lua to write.
-- The first cell of each part of a row, in numbers of 32 bits.
local OUTCOME, RUN, WAIT = 3, 12, 32

-- Add equal ends to the cells of a row.
-- outcome: its number (worker/queue/series.py) | 0  lapsed: leases of each that lapsed
-- run, wait: their buckets; a run of -1: none ran  run_us, wait_us: of all of them
local function collect(cells, ends, outcome, lapsed, run, wait, run_us, wait_us)
  if outcome > 0 then
    cells[OUTCOME + outcome] = (cells[OUTCOME + outcome] or 0) + ends
  end
  if lapsed > 0 then
    cells[OUTCOME + 7] = (cells[OUTCOME + 7] or 0) + ends * lapsed
  end
  if run >= 0 then
    cells[RUN + run] = (cells[RUN + run] or 0) + ends
    cells[WAIT + wait] = (cells[WAIT + wait] or 0) + ends
    cells[0], cells[1] = (cells[0] or 0) + math.floor(run_us), (cells[1] or 0) + math.floor(wait_us)
  end
end
