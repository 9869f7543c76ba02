-- Going through the names below a container, and what a listing has of each.

-- What a page says of its namespace: {'again'} or {'same', tag} in its place, as list.lua has them, or nil; and the tag.
local function begin_page(prefix, now, none_match)
  if sweep(prefix, now, MOST_EXPIRED) == MOST_EXPIRED then -- all of it, or the tag would not say what has expired
    return {'again'}
  end
  local tag = last_change() or '0-0'
  if none_match == '*' or string.find(none_match, ' ' .. tag .. ' ', 1, true) then
    return {'same', tag}
  end
  return nil, tag
end

local expired = 0 -- documents that a page has found to be gone

-- Record a document that a page has found to be gone. Returns whether one script may record no more.
local function record_gone(name)
  erasing().record(name)
  expired = expired + 1
  return expired == MOST_EXPIRED or (collected or 0) >= MOST_ERASED
end

-- Two functions: the first returns one name after the other, relative to the container, and nil where there are no more; the
-- second leaves out all that lies below a container. At first so many names are read at once, then twice as many and so on, up to
-- `most`; after such a container it begins with one, since below the next one others may lie that say nothing.
local function names_below(container, after, descending, direct, at_once, most)
  -- What is still to come. A slash is followed by a 0 in the order of bytes.
  local low, high = range_below(container)
  local names, at = {}, 0
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
  local function next_name()
    if at == #names then
      if at > 0 then
        pass(string.sub(names[at], #container + 1))
      end
      if descending then
        names = redis.call('ZREVRANGEBYLEX', NAMES, high, low, 'LIMIT', 0, at_once)
      else
        names = redis.call('ZRANGEBYLEX', NAMES, low, high, 'LIMIT', 0, at_once)
      end
      at, at_once = 0, math.min(2 * at_once, most)
    end
    at = at + 1
    return names[at] and string.sub(names[at], #container + 1)
  end
  local function skip(relative)
    pass(relative)
    names, at, at_once = {}, 0, 1
  end
  return next_name, skip
end

-- The item of a document: {name, fields, expires_at_ms, ttl_ms}; nil where none is. `read` is nil for all fields, or the words
-- {'HMGET', '', '$kv', fields…} for some of an object. Without any it is {name, {'$kv', its value}, …}.
local function item_at(key, name, read)
  local fields
  if read then
    read[2] = key
    local found = redis.pcall(unpack(read))
    if found.err then -- another client's key of another type: not a document
      return
    end
    if #read == 3 then
      fields = (found[1] or redis.call('EXISTS', key) == 1) and {'$kv', found[1] or ''} or {}
    elseif found[1] and not string.find(found[1], ' value', 1, true) then
      fields = {'$kv', found[1]}
      for i = 2, #read - 2 do
        if found[i] then
          fields[#fields + 1], fields[#fields + 2] = read[i + 2], found[i]
        end
      end
    end
  end
  fields = fields or redis.pcall('HGETALL', key)
  if not fields.err and #fields > 0 then
    return {name, fields, redis.call('PEXPIRETIME', key), redis.call('PTTL', key)}
  end
end

-- The time in ms where a container is worked as a queue, which jobs need to say whether they are ready.
local function time_of_queue(container, now)
  return redis.call('ZSCORE', READY_AT, container .. '/') and string.format('%.0f', now)
end
