-- The changes of a document that the log holds, newest first. They are a chain: each names the one before it (_log.lua).
-- KEYS   1 log  2 document
-- ARGV   1 the change to go on with, '' for the last one  2 most changes  3 most bytes of them, about
--        4 the only change that is asked for, '' for all
-- reply  {'missing'}; {'read', entries of the log, 'all' where the chain ends with the first change of the document, 'lost' where the
--        log does not hold what came before, or 'more', and the change to go on with where there may be more}

local MOST_WALKED = 1000 -- changes in one script, those with many members counted as several: some 5 ms

local function read_history(key, at)
  local exists, tag = inspect(key)
  if not exists then
    return {'missing'}
  end
  local id, most, most_bytes, wanted = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]), ARGV[at + 3]
  if id == '' then
    id = tag
  end
  local entries, bytes, walked = {}, 0, 0
  if not id then -- another client's hash
    return {'read', entries, 'lost'}
  end
  while id do
    if walked >= MOST_WALKED then
      return {'read', entries, 'more', id}
    end
    local entry = redis.call('XRANGE', LOG, id, id)[1]
    if not entry or (wanted ~= '' and is_before(id, wanted)) then
      return {'read', entries, 'lost'}
    end
    walked = walked + 1 + #entry[2] / 2 / MEMBERS_PER_CHANGE
    if id == wanted then
      return {'read', {entry}, 'all'}
    elseif wanted == '' and #entries < most and bytes <= most_bytes then
      entries[#entries + 1] = entry
      for _, part in ipairs(entry[2]) do
        bytes = bytes + #part
      end
    end
    id = string.match(entry[2][6] or '', '^(%d+%-%d+) ')
  end
  return {'read', entries, wanted == '' and 'all' or 'lost'}
end
