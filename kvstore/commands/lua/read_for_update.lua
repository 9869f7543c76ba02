-- Read a document that is to be changed and written back, by put.lua.
-- KEYS   1 log  2 document
-- ARGV   1 the document's name in names and log  2 If-Match  3 If-None-Match  4 If-Unmodified-Since (s)
-- reply  {'read', what is there}, {'failed', what is there}, {'leased'}

local function read_for_update(key, at)
  local exists, tag, _, job = inspect(key)
  return refuse(key, exists, tag, job, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]) or {'read', read(key)}
end
