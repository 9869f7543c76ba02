-- The changes of everything below a container that the log holds, newest first.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 the container's own name in names and log, '' or 'a/b/'
--        3 the change before which to go on, '' for the end of the log  4 most changes  5 most bytes of them, about
-- reply  {'again'} where so many documents have expired that Redis does something else in between; {'read', entries of the log, each
--        without what it says of a document that is not there, 1 if the log has lost nothing, the change before which to go on where
--        there may be more}

local MOST_LOOKED_AT = 1000 -- changes in one script, those with many members counted as several: some 5 ms
local AT_ONCE = 10 -- as in read_changes.lua

-- Whether every change of the namespace is in the log, or was erased with its document. What an atomic batch took back is missing, too.
local function is_whole()
  if redis.call('EXISTS', LOG) == 0 then
    return redis.call('EXISTS', NAMES) == 0
  end
  local known = log_facts()
  return known['entries-added'] == known['length'] + redis.call('ZCARD', ERASED)
end

-- The name of the document that an entry is about: one of POST has the container's.
local function name_in(id, fields)
  if fields[1] ~= 'post' then
    return fields[2]
  end
  local ms, count = string.match(id, '^(%d+)%-(%d+)$')
  return fields[2] .. ms .. string.char(96 + #count) .. count
end

local function read_container_changes(_, at)
  local prefix, container, from = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local most, most_bytes = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  if sweep(prefix, clock(), MOST_EXPIRED) == MOST_EXPIRED then -- all of it: no entry is shown of what has expired
    return {'again'}
  end
  if collected then
    erasing().finish()
  end
  local entries, exists, bytes, looked_at = {}, {}, 0, 0
  local whole = is_whole() and 1 or 0
  while true do
    local some = redis.call('XREVRANGE', LOG, from == '' and '+' or '(' .. from, '-', 'COUNT', AT_ONCE)
    for _, entry in ipairs(some) do
      local id, fields = entry[1], entry[2]
      looked_at, from = looked_at + 0.5 + #fields / 2 / MEMBERS_PER_CHANGE, id
      local name = name_in(id, fields)
      if string.sub(name, 1, #container) == container then
        if exists[name] == nil then
          exists[name] = redis.call('EXISTS', prefix .. name) == 1
          looked_at = looked_at + 0.5
        end
        entries[#entries + 1] = exists[name] and entry or {id, slice(fields, 1, 2)}
        for _, part in ipairs(entries[#entries][2]) do
          bytes = bytes + #part
        end
        if #entries == most or bytes > most_bytes then
          return {'read', entries, whole}
        end
      end
    end
    if #some < AT_ONCE then
      return {'read', entries, whole}
    elseif looked_at >= MOST_LOOKED_AT then
      return {'read', entries, whole, from}
    end
  end
end
