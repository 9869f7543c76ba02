-- Refuse a request by what was read; a script of its own only so that once.lua can keep it.
-- KEYS   1…4 as in prelude.lua  5 document
-- ARGV   1 the name of the problem  2 its detail
-- reply  {'problem', name, detail}

local function conclude(_, at)
  return {'problem', ARGV[at], ARGV[at + 1]}
end
