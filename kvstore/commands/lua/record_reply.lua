-- Say what was decided outside of Redis; a script of its own only so that idempotent.lua can keep it.
-- KEYS   1 log  2 document
-- ARGV   1… words
-- reply  the words

local function record_reply(_, at, last)
  return slice(ARGV, at, last)
end
