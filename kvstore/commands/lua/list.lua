-- List what lies directly below a container, or all documents below it; in order of name, a page.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 the container's own name in names and log, '' or 'a/b/'
--        3 the name after which the page starts, '' for the first  4 most items  5 'asc' or 'desc'  6 'values' or 'keys'
--        7 'direct' or 'recursive'  8 most bytes of values  9 If-None-Match
--        10 on: conditions, of which a document that cannot meet one is left out: field, 'texts', count, texts that may be
--        meant; or field, 'range', lowest, highest number
-- reply  {'again'} where so many documents have expired, or may have, that Redis does something else in between;
--        {'same', tag} where that matches, or {'listing', tag, 'more' or nil, items, the time in ms where the
--        container is worked as a queue, else nil}; an item is {name, fields, expires_at_ms,
--        ttl_ms} for a document (with 'keys' the fields are {'$kv', its value}, or none), {name} for a container; its name
--        ends in a slash. The tag is the id of the namespace's last change. With conditions follow how many documents were left
--        out, and the name of the last one that was looked at.

local MOST_EXPIRED = 1000 -- documents, in one call
local MOST_LEFT_OUT = 2000 -- documents, in one call: some 5 ms
local MOST_LOOKED_AT = 4194304 -- bytes of their fields, about

local function list(_, at)
  local prefix, container, after = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local most, most_bytes = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 7])
  local descending, with_values, direct = ARGV[at + 4] == 'desc', ARGV[at + 5] == 'values', ARGV[at + 6] == 'direct'
  local now = clock()
  if sweep(prefix, now, MOST_EXPIRED) == MOST_EXPIRED then -- all of it, or the tag would not say what has expired
    return {'again'}
  end
  local tag = last_change() or '0-0'
  if ARGV[at + 8] == '*' or string.find(ARGV[at + 8], ' ' .. tag .. ' ', 1, true) then
    return {'same', tag}
  end

  local conditions, left_out, looked_at = ARGV[at + 9] and conditions_at(at + 9) or {}, 0, 0
  local function is_left_out(key)
    for _, condition in ipairs(conditions) do
      local text = redis.pcall('HGET', key, condition[1])
      if type(text) ~= 'string' then
        return true
      end
      looked_at = looked_at + #text
      if not condition[2](text) then
        return true
      end
    end
  end

  local time = redis.call('ZSCORE', READY_AT, container .. '/') and string.format('%.0f', now)

  -- What is still to come. A slash is followed by a 0 in the order of bytes.
  local low, high = range_below(container)
  local function pass(relative)
    if descending then
      high = '(' .. container .. relative
    elseif direct and string.sub(relative, -1) == '/' then
      low = '[' .. container .. string.sub(relative, 1, -2) .. '0'
    else
      low = '(' .. container .. relative
    end
  end
  if after ~= '' then
    pass(after)
  end

  -- As many names as are missing, but after a container, below which others may lie that say nothing, one, two, four and so on.
  local items, bytes, members, expired, at_once, last = {}, 0, 0, 0, most + 1, after
  while true do
    local names
    at_once = math.min(at_once, most - #items + 1)
    if descending then
      names = redis.call('ZREVRANGEBYLEX', NAMES, high, low, 'LIMIT', 0, at_once)
    else
      names = redis.call('ZRANGEBYLEX', NAMES, low, high, 'LIMIT', 0, at_once)
    end
    at_once = 2 * at_once
    if #names == 0 then
      return {'listing', tag, false, items, time, left_out, last}
    end
    for _, name in ipairs(names) do
      local relative = string.sub(name, #container + 1)
      local slash = string.find(relative, '/', 1, true)
      local item, lies_deeper
      if slash == #relative and slash then -- a namespace, in the root's index
        item = {relative}
      elseif slash and direct then
        if redis.call('EXISTS', prefix .. name) == 1 then
          relative, lies_deeper = string.sub(relative, 1, slash), true
          item = {relative}
        end
      elseif relative ~= '' and is_left_out(prefix .. name) then
        left_out = left_out + 1
      elseif relative ~= '' then
        local fields = with_values and redis.pcall('HGETALL', prefix .. name)
          or redis.pcall('HMGET', prefix .. name, '$kv')
        if fields.err then -- another client's key of another type: not a document
          fields = nil
        elseif not with_values then
          local meta = fields[1]
          fields = (meta or redis.call('EXISTS', prefix .. name) == 1) and {'$kv', meta or ''} or {}
        end
        if fields and #fields > 0 then
          item = {relative, fields, redis.call('PEXPIRETIME', prefix .. name), redis.call('PTTL', prefix .. name)}
          members = members + #fields / 2
          for _, part in ipairs(fields) do
            bytes = bytes + #part
          end
        end
      end
      if item then
        if #items == most or ((bytes > most_bytes or members > MOST_MEMBERS) and #items > 0) then
          return {'listing', tag, 'more', items, time, left_out, last}
        end
        items[#items + 1] = item
      elseif #conditions > 0 then
        if left_out == MOST_LEFT_OUT or looked_at > MOST_LOOKED_AT then
          return {'listing', tag, 'more', items, time, left_out, relative}
        end
      elseif relative ~= '' and redis.call('EXISTS', prefix .. name) == 0 then
        erasing().record(name)
        expired = expired + 1
        if expired == MOST_EXPIRED or (collected or 0) >= MOST_ERASED then
          return {'again'}
        end
      end
      pass(relative)
      last = relative
      if lies_deeper then
        at_once = 1
        break -- past all that lies below that container
      end
    end
  end
end
