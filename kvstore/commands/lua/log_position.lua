-- Where the change log of a namespace ends now, and a document as it is at that place.
-- KEYS   1 log  2 document, where it is asked for
-- reply  {place, what is there}; the place is the id of the last change, or where there is no log the time, with a count that
--        no change has: read_changes.lua knows it by that

local function log_position(key)
  return {end_of_log(), key and read(key)}
end
