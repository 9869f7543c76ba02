-- Replace a document as a whole, or create it.
-- KEYS   1…4 as in prelude.lua  5 document
-- ARGV   1 the document's name in names and log  2 ttl_ms  3 If-Match  4 If-None-Match  5 If-Unmodified-Since (s)
--        6 length of the log  7 'put', or 'patch' for a document that was read, changed, and is written back: the expiry stays
--        where ttl_ms is ''  8 what it was read as: '' for anything, '-' for a hash without a tag, '!' for
--        nothing, else its tag
--        9 what follows the entity-tag in our own field  10 'sv' where values are server values  11… field, value, …
-- reply  {'created' or 'replaced', entity-tag, expires_at_ms (-1: never), ttl_ms, nil or all fields where they are not those
--        that were sent, nil or the ms at which the namespace's own keys expire where that is new}
--        {'failed', what is there}, {'lost', what is there} where it is no longer as it was read, {'no sum', field}

local function put(key, at, last)
  local rest, ttl_ms, base = ARGV[at], ARGV[at + 1], ARGV[at + 7]
  local exists, tag = look(key)
  if fails(exists, tag, ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]) then
    return {'failed', read(key)}
  end
  if base ~= '' and base ~= (exists and (tag or '-') or '!') then
    return {'lost', read(key)}
  end

  -- A key of another type is found before anything is written: what is known to be in the index was written there by us, and
  -- XADD is the first write. It is also where a full Redis refuses, with nothing changed.
  local due = redis.call('ZSCORE', EXPIRY, rest)
  if not (due and exists) then
    check_types(rest)
  end
  local server_values = ARGV[at + 9] ~= ''
  if server_values then
    check_types(rest)
    local field = resolve(key, at + 11, last)
    if field then
      return {'no sum', field}
    end
  end
  if due and not exists then
    redis.call('XADD', LOG, '*', 'expire', rest)
  end
  local keeps_expiry = ttl_ms == ''
  local expires_at = -1
  if keeps_expiry then
    expires_at = redis.call('PEXPIRETIME', key)
    ttl_ms = redis.call('PTTL', key)
  end
  local shape = ARGV[at + 8]
  local id, now = append(ARGV[at + 5], ARGV[at + 6], rest, ttl_ms, shape, ARGV, at + 10, last)

  if exists then
    redis.call('DEL', key)
  end
  if last - at < MOST_ARGUMENTS then
    redis.call('HSET', key, '$kv', id .. shape, unpack(ARGV, at + 10, last))
  else
    redis.call('HSET', key, '$kv', id .. shape)
    set(key, ARGV, at + 10, last)
  end
  if not keeps_expiry then
    redis.call('PEXPIRE', key, ttl_ms)
    expires_at = now + ttl_ms
  elseif expires_at >= 0 then
    redis.call('PEXPIREAT', key, expires_at)
  end
  local news = note(rest, exists and due, expires_at >= 0 and expires_at)
  if now % 16 == 0 then -- often enough that the indexes hold little that has expired, seldom enough to cost nothing
    sweep(string.sub(key, 1, #key - #rest), now, 100)
  end
  local fields = false
  if server_values or base ~= '' then
    fields = slice(ARGV, at + 10, last)
    fields[#fields + 1], fields[#fields + 2] = '$kv', id .. shape
  end
  return {exists and 'replaced' or 'created', id, expires_at, ttl_ms, fields, news}
end
