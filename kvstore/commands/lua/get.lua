-- Read a document among other requests; read.lua is the one that reads alone.
-- ARGV   1 the document's name in names and log  2 If-Match  3 If-Unmodified-Since (s)
-- reply  {'read', what is there}, {'missing'}, {'failed', what is there}

local function get(key, at)
  local exists, tag = inspect(key)
  if not exists then
    return {'missing'}
  end
  return {fails(exists, tag, ARGV[at + 1], '', ARGV[at + 2]) and 'failed' or 'read', read(key)}
end
