-- What has changed in a namespace since a place in its log.
-- KEYS   1 log  2 expiry  3 released
-- ARGV   1 the place  2 most changes  3 what stands before a name in the documents' keys  4 most bytes, about
--        5 'live' for who has followed since that place: with changes whose documents have gone a moment ago; else ''
-- reply  {'again'} where so many documents have expired that Redis does something else in between; {'entries', entries of the
--        log, the ms until the next document expires (-1: none does), the place in what is released, 'more' where that is not
--        all, else nil, where there are none and the place is no entry: the place from now on}, {'lost'} where the log does not
--        hold all of them, or not the place: it was trimmed, or Redis was emptied, or it has come back with an older state

-- Whether a position is a change that was erased, and nothing that came after it is missing.
local function is_erased_position(id)
  for _ = 1, MOST_KNOWN do
    local known = redis.pcall('ZRANGEBYLEX', ERASED, '[' .. id .. ' ', '(' .. id .. '!', 'LIMIT', 0, 1)[1] -- '!' follows ' '
    if not known then
      return false
    end
    id = string.sub(known, #id + 2)
    if redis.call('XRANGE', LOG, id, id)[1] then
      return true
    end
  end
  return false
end

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
  local count = known['length'] + redis.call('ZCARD', ERASED)
  return known['entries-added'] == count and tonumber(string.match(first[1], '^%d+')) > ms
end

-- The ms until sweep() has something to do, -1 where that is never.
local function wait_for_expiry(now)
  local due = redis.call('ZRANGE', EXPIRY, 0, 0, 'WITHSCORES')[2]
  return due and math.max(0, due - now + 1) or -1
end

local AT_ONCE = 10 -- entries: each has 3,500 members at most, and what is read and not sent is for nothing

-- The entries that came after a place, as many as may be sent at once; whether the place itself is still there, and whether there
-- are more.
local function entries_since(place, most, most_bytes)
  local entries, bytes, from, is_there = {}, 0, place, false
  while true do
    local some = redis.call('XRANGE', LOG, from, '+', 'COUNT', AT_ONCE)
    for _, entry in ipairs(some) do
      if entry[1] == place then
        is_there = true
      elseif #entries == most or bytes > most_bytes then
        return entries, is_there, true
      else
        entries[#entries + 1] = entry
        for _, part in ipairs(entry[2]) do
          bytes = bytes + #part
        end
      end
    end
    if #some < AT_ONCE then
      return entries, is_there, false
    end
    from = '(' .. some[#some][1]
  end
end

-- The same, and among them the changes that came after the place and were erased a moment ago.
local function with_unread(entries, place, has_more, most_bytes)
  local unread, last = redis.pcall('XRANGE', UNREAD, '-', '+'), entries[#entries]
  local all = {}
  for _, entry in ipairs(last and not unread.err and unread or {}) do
    local id = entry[2][2]
    if is_before(place, id) and not (has_more and is_before(last[1], id)) then
      all[#all + 1] = {id, slice(entry[2], 3, #entry[2])}
    end
  end
  if #all == 0 then
    return entries, has_more
  end
  for _, entry in ipairs(entries) do
    all[#all + 1] = entry
  end
  table.sort(all, function(one, other) return is_before(one[1], other[1]) end)
  local bytes = 0
  for i, entry in ipairs(all) do
    if bytes > most_bytes then
      return slice(all, 1, i - 1), true
    end
    for _, part in ipairs(entry[2]) do
      bytes = bytes + #part
    end
  end
  return all, has_more
end

-- The reply where the log has lost nothing.
local function page(entries, has_more, wait)
  local released = redis.pcall('XREVRANGE', RELEASED, '+', '-', 'COUNT', 1)[1] -- of another type it frees nothing
  return {'entries', entries, wait, released and released[1] or '0-0', has_more and 'more' or false}
end

local function read_changes(_, at)
  local from, most, most_bytes = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 3])
  local now = clock()
  local wait = wait_for_expiry(now)
  if wait == 0 then
    if sweep(ARGV[at + 2], now, MOST_EXPIRED) == MOST_EXPIRED then -- all of it: no entry is shown of what has expired
      return {'again'}
    end
    if collected then
      erasing().finish()
    end
    wait = wait_for_expiry(now)
  end
  local left_ms = redis.call('PTTL', LOG)
  if left_ms >= 0 and left_ms < DAY_MS then
    expire_namespace() -- anew: the place of who follows a namespace without documents is in that log
  end
  local entries, is_there, has_more = entries_since(from, most, most_bytes)
  -- Where the place is still there, so is all that came after it.
  if not (is_there or is_erased_position(from) or is_whole_since(from, now)) then
    return {'lost'}
  end
  if ARGV[at + 4] == 'live' then
    entries, has_more = with_unread(entries, from, has_more, most_bytes)
  end
  local reply = page(entries, has_more, wait)
  if not is_there and not entries[1] then
    reply[6] = end_of_log() -- a place that was made by the clock would be too old in a day
  end
  return reply
end
