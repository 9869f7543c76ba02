-- What has changed in a namespace since a place in its log.
-- KEYS   1 log
-- ARGV   1 the place  2 most changes  3 what stands before a name in the documents' keys
-- reply  {'held', entries of the log}, or {'lost'} where the log no longer holds all of them, or does not hold the place yet

local function is_before(one, other)
  local ms1, n1 = string.match(one, '^(%d+)%-(%d+)$')
  local ms2, n2 = string.match(other, '^(%d+)%-(%d+)$')
  ms1, n1, ms2, n2 = tonumber(ms1), tonumber(n1), tonumber(ms2), tonumber(n2)
  return ms1 < ms2 or (ms1 == ms2 and n1 < n2)
end

local function changes(_, at)
  local from, most = ARGV[at], ARGV[at + 1]
  local now = clock()
  sweep(ARGV[at + 2], now, 1000)
  -- A log lives for a day at least, so within a day of a place none can have come and gone unseen.
  local is_recent = not is_before(from, string.format('%.0f-0', now - DAY_MS))
  if redis.call('EXISTS', LOG) == 0 then
    return is_recent and {'held', {}} or {'lost'}
  end
  local first = redis.call('XRANGE', LOG, '-', '+', 'COUNT', 1)[1]
  local facts = redis.call('XINFO', 'STREAM', LOG)
  local known = {}
  for i = 1, #facts, 2 do
    known[facts[i]] = facts[i + 1]
  end
  if is_before(known['last-generated-id'], from) then
    return {'lost'}
  end
  if not first or is_before(from, first[1]) then
    local is_whole = known['entries-added'] == known['length']
    if not (is_whole and is_recent) and from ~= known['last-generated-id'] then
      return {'lost'}
    end
  end
  return {'held', redis.call('XRANGE', LOG, '(' .. from, '+', 'COUNT', most)}
end
