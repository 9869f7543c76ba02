-- Read a document that is to be changed and written back, by put.lua.
-- KEYS   1…4 as in prelude.lua  5 document
-- ARGV   1 If-Match  2 If-None-Match  3 If-Unmodified-Since (s)
-- reply  {'read', what is there}, {'failed', what is there}

local function begin(key, at)
  local exists, tag = look(key)
  if fails(exists, tag, ARGV[at], ARGV[at + 1], ARGV[at + 2]) then
    return {'failed', read(key)}
  end
  return {'read', read(key)}
end
