-- Shared step: read the name of a job's function from its body. Needs types before it.
local ET_FIRST = 162  -- as in _body.lua

-- returns the name of a job's function | '<unknown>'
local function function_in(key)
  -- A body is a map that begins with t, tries, f, name, or et and a time before them; its arguments may be large.
  local head, ok, field, name, _ = allowed(redis.pcall('GETRANGE', key, 0, 1023)), nil, nil, nil, nil
  if type(head) ~= 'string' then
    return '<unknown>'
  elseif string.byte(head, 2) == ET_FIRST then
    ok, _, _, _, _, _, field, name = pcall(cmsgpack.unpack_limit, head, 6, 1)
  else
    ok, _, _, _, field, name = pcall(cmsgpack.unpack_limit, head, 4, 1)
  end
  return ok and field == 'f' and type(name) == 'string' and #name <= 256 and name or '<unknown>'
end
