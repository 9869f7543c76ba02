-- List what lies directly below a container, or all documents below it; in order of name, a page.
-- KEYS   1 log  2 document  3 who waits for a job there, by the ms until which they do (register_taker.lua)
-- ARGV   1 what stands before a name in the documents' keys  2 the container's own name in names and log, '' or 'a/b/'
--        3 the name after which the page starts, '' for the first  4 most items  5 'asc' or 'desc'  6 'values' or 'keys'
--        7 'direct' or 'recursive'  8 most bytes of values  9 If-None-Match
-- reply  {'again'} where so many documents have expired, or may have, that Redis does something else in between;
--        {'same', tag} where that matches, or {'listing', tag, 'more' or nil, items, the time in ms where the
--        container is worked as a queue, else nil, who waits there, each followed by its ms}; an item is {name, fields,
--        expires_at_ms, ttl_ms} for a document (with 'keys' the fields are {'$kv', its value}, or none), {name} for a
--        container; its name ends in a slash. The tag is the id of the namespace's last change.

local MOST_TAKERS = 100 -- that are shown

local function list(_, at)
  local prefix, container, after = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local most, most_bytes = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 7])
  local descending, direct = ARGV[at + 4] == 'desc', ARGV[at + 6] == 'direct'
  local read = ARGV[at + 5] == 'keys' and {'HMGET', '', '$kv'} or nil
  local now = clock()
  local instead, tag = begin_page(prefix, now, ARGV[at + 8])
  if instead then
    return instead
  end

  local next_name, skip = names_below(container, after, descending, direct, most + 1, most + 1)
  local items, bytes, members, has_more = {}, 0, 0, false
  for relative in next_name do
    local slash = string.find(relative, '/', 1, true)
    local item
    if slash == #relative and slash then -- a namespace, in the root's index
      item = {relative}
    elseif slash and direct then
      if redis.call('EXISTS', prefix .. container .. relative) == 1 then
        item = {string.sub(relative, 1, slash)}
        skip(item[1])
      end
    elseif relative ~= '' then
      item = item_at(prefix .. container .. relative, relative, read)
    end
    if item then
      local fields = item[2] or {}
      members = members + #fields / 2
      for _, part in ipairs(fields) do
        bytes = bytes + #part
      end
      if #items == most or ((bytes > most_bytes or members > MOST_MEMBERS) and #items > 0) then
        has_more = 'more'
        break
      end
      items[#items + 1] = item
    elseif relative ~= '' and redis.call('EXISTS', prefix .. container .. relative) == 0 then
      if record_gone(container .. relative) then
        return {'again'}
      end
    end
  end
  local takers = {} -- the first page of what is directly below has them
  if direct and after == '' then
    takers = redis.pcall('ZRANGEBYSCORE', KEYS[3], string.format('(%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, MOST_TAKERS)
    takers = takers.err and {} or takers -- another client's key of another type
  end
  return {'listing', tag, has_more, items, time_of_queue(container, now), takers}
end
