-- Which documents exist, in one namespace.
-- KEYS   the documents
-- reply  for each 1 or 0

local reply = {}
for at, key in ipairs(KEYS) do
  reply[at] = redis.call('EXISTS', key)
end
return reply
