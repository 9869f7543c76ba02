-- Say what was decided outside of Redis; a script of its own only so that once.lua can keep it.
-- KEYS   1…4 as in prelude.lua  5 document
-- ARGV   1 the name of the problem, or 'deleted below'  2 its detail, or how many
-- reply  the same

local function conclude(_, at)
  return {ARGV[at], ARGV[at + 1]}
end
