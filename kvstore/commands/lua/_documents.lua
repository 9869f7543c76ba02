-- Reading, judging, replacing and deleting a document.

local MOST_MEMBERS = 50000 -- that one script reads, about, of as many documents as have them: 25 ms

-- Whether a document is not an object.
local function is_scalar(tag, meta)
  return tag and string.sub(meta, #tag + 1, #tag + 6) == ' value'
end

-- What is there: {fields, expires_at_ms, ttl_ms}, both times -1 where it does not expire; false where nothing is.
local function read(key)
  local fields = redis.call('HGETALL', key)
  if #fields == 0 then
    return false
  end
  return {fields, redis.call('PEXPIRETIME', key), redis.call('PTTL', key)}
end

-- Whether a precondition fails (RFC 9110 section 13.2.2). `match` and `none_match` are '', '*' or ' tag tag '.
local function fails(exists, tag, match, none_match, unmodified_since_s)
  if match ~= '' then
    if not exists then
      return true
    end
    if match ~= '*' and not (tag and string.find(match, ' ' .. tag .. ' ', 1, true)) then
      return true
    end
  elseif unmodified_since_s ~= '' and tag then
    if math.floor(string.match(tag, '^%d+') / 1000) > tonumber(unmodified_since_s) then
      return true
    end
  end
  if none_match == '*' then
    return exists
  end
  return none_match ~= '' and tag and string.find(none_match, ' ' .. tag .. ' ', 1, true) and true or false
end

-- The reply to a write that a lease or a precondition refuses, nil where none does. While a job is leased its lease takes the
-- place of the entity-tag.
local function refuse(key, exists, tag, job, match, none_match, unmodified_since_s)
  if match ~= '*' and is_leased(job) then
    if match == '' then
      return {'leased'}
    end
    if not string.find(match, ' ' .. job.lease .. ' ', 1, true) then
      return {'failed', read(key)}
    end
    match = ''
  end
  if fails(exists, tag, match, none_match, unmodified_since_s) then
    return {'failed', read(key)}
  end
end

-- HSET of fields[first..last], in as many calls as it takes.
local function set(key, fields, first, last)
  for from = first, last, MOST_ARGUMENTS do
    redis.call('HSET', key, unpack(fields, from, math.min(from + MOST_ARGUMENTS - 1, last)))
  end
end

-- Put ARGV[first..last] in the place of all that a document holds, and say so in the log and the indexes: how many fields it
-- has (0: it is not there), its entity-tag (nil: none), `mark`, what is known of it as a job, and `due`, as index() takes it, are
-- known by now, and so is that no key has another type. The first write is XADD, which a full Redis refuses with nothing
-- changed. `expires_at` is -1 for never, nil for ttl_ms from now on. Returns the entity-tag, expires_at, the time in ms, and what index() returns.
local function replace(key, size, tag, mark, due, length, op, name, ttl_ms, expires_at, shape, first, last)
  local exists = size > 0
  if due and not exists then
    erasing().expire(name)
  end
  local id, now = append(length, op, name, tag or '', ttl_ms, shape, ARGV, first, last)
  local meta, stop = mark .. id .. shape, math.min(last, first + MOST_ARGUMENTS - 1)
  -- A document with as many fields as it will have, none of them new, is written over: DEL and making a hash cost more.
  local is_over = size * 2 == last - first + 3 and stop == last
  if not is_over or redis.call('HSET', key, '$kv', meta, unpack(ARGV, first, stop)) > 0 then
    if exists then
      redis.call('UNLINK', key) -- here and below: to free a large hash is not the script's work
    end
    redis.call('HSET', key, '$kv', meta, unpack(ARGV, first, stop))
    set(key, ARGV, stop + 1, last)
  end
  if not expires_at then
    redis.call('PEXPIRE', key, ttl_ms)
    expires_at = now + ttl_ms
  elseif expires_at >= 0 then
    redis.call('PEXPIREAT', key, expires_at)
  end
  local new_expiry = index(name, exists and due, expires_at >= 0 and expires_at)
  if expires_at >= 0 and expires_at - now < SOON_MS then
    know_latest(name, id)
  end
  return id, expires_at, now, new_expiry
end

-- Delete a document that is there. UNLINK is the first write: a full Redis lets it through, and with it what follows in the script.
-- Returns the change's id. The changes of the document stay: erase_changes() is for these.
local function remove(key, name, length)
  redis.call('UNLINK', key)
  redis.call('ZREM', NAMES, name)
  redis.call('ZREM', EXPIRY, name)
  local id = add(length, 'delete', name)
  expire_namespace()
  return id
end

-- Erase the changes of a document that was removed and had this entity-tag (nil: none).
local function erase_changes(name, tag)
  redis.pcall('HDEL', LATEST, name)
  if tag and deferred_erasures then
    deferred_erasures[#deferred_erasures + 1] = tag
  elseif tag then
    erasing().erase(tag)
  end
end
