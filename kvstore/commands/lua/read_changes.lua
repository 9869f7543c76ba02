-- What has changed in a namespace since a place in its log.
-- KEYS   1 log  2 expiry  3 released
-- ARGV   1 the place  2 most changes  3 what stands before a name in the documents' keys  4 most bytes, about
-- reply  {'entries', entries of the log, the ms until the next document expires (-1: none does), the place in what is released,
--        'more' where that is not all, else nil, where there are none and the place is no entry: the place from now on},
--        {'lost'} where the log does not hold all of them, or not the place: it was trimmed, or Redis was emptied, or it has
--        come back with an older state

-- Whether all that came after a place is in the log, though the place itself is no entry of it.
local function is_whole_since(from, now)
  local ms = tonumber(string.match(from, '^(%d+)%-999999999$')) -- made where there was no log (log_position.lua)
  -- A log lives for a day at least, so within a day of a place none can have come and gone unseen.
  local is_recent = ms and ms < now and ms >= now - DAY_MS
  if redis.call('EXISTS', LOG) == 0 then
    return is_recent
  end
  local known = log_facts()
  if from == known['last-generated-id'] then
    return true
  end
  local first = redis.call('XRANGE', LOG, '-', '+', 'COUNT', 1)[1]
  if not is_recent or not first then -- a batch that is undone takes back its own entries, and trims no others
    return is_recent
  end
  return known['entries-added'] == known['length'] and tonumber(string.match(first[1], '^%d+')) > ms
end

-- The ms until sweep() has something to do, -1 where that is never.
local function wait_for_expiry(now)
  local due = redis.call('ZRANGE', EXPIRY, 0, 0, 'WITHSCORES')[2]
  return due and math.max(0, due - now + 1) or -1
end

-- The reply where the log has lost nothing: as many of the entries as may be sent at once.
local function page(entries, most, most_bytes, wait)
  local released = redis.pcall('XREVRANGE', RELEASED, '+', '-', 'COUNT', 1)[1] -- of another type it frees nothing
  local bytes = 0
  for i, entry in ipairs(entries) do
    if i > most or bytes > most_bytes then
      return {'entries', slice(entries, 1, i - 1), wait, released and released[1] or '0-0', 'more'}
    end
    for _, part in ipairs(entry[2]) do
      bytes = bytes + #part
    end
  end
  return {'entries', entries, wait, released and released[1] or '0-0', false}
end

local function read_changes(_, at)
  local from, most, most_bytes = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 3])
  local now = clock()
  local wait = wait_for_expiry(now)
  if wait == 0 then
    sweep(ARGV[at + 2], now, 1000)
    wait = wait_for_expiry(now)
  end
  local left_ms = redis.call('PTTL', LOG)
  if left_ms >= 0 and left_ms < DAY_MS then
    expire_namespace() -- anew: the place of who follows a namespace without documents is in that log
  end
  local entries = redis.call('XRANGE', LOG, from, '+', 'COUNT', most + 2)
  if entries[1] and entries[1][1] == from then -- where the place itself is still there, so is all that came after it
    table.remove(entries, 1)
    return page(entries, most, most_bytes, wait)
  end
  if not is_whole_since(from, now) then
    return {'lost'}
  end
  local reply = page(entries, most, most_bytes, wait)
  if not entries[1] then
    reply[6] = end_of_log() -- a place that was made by the clock would be too old in a day
  end
  return reply
end
