-- Replace a document as a whole, or create it.
-- KEYS   1 log  2 document
-- ARGV   1 the document's name in names and log  2 ttl_ms  3 length of the log  4 what follows the entity-tag in our own field
--        5 '' for a plain PUT; 6… field, value, …
--        5 else 'put', or 'patch' for a document that was read, changed, and is written back: it keeps its expiry if ttl_ms is
--        ''  6 If-Match  7 If-None-Match  8 If-Unmodified-Since (s)  9 what the document was read as: '' for anything, '!' for
--        nothing, else its tag or '-', and the digest of its fields  10 'sv' if some values are server values, else ''
--        11… field, value, …
-- reply  {'created' or 'replaced', entity-tag, expires_at_ms (-1: never), ttl_ms, nil or all fields where they are not those
--        that were sent, nil or the ms at which the namespace's own keys expire where that is new}
--        {'failed', what is there}, {'leased'}, {'lost', what is there} where it is no longer as it was read, {'no sum', field}

-- What stands for all that a hash holds, a job's state included, whatever the order of its fields, which a hash may change by
-- itself. Not the entity-tag alone: other clients write fields and leave that as it is.
local function digest(fields)
  local sum = 0
  for i = 1, #fields, 2 do
    local hex = redis.sha1hex(#fields[i] .. ':' .. fields[i] .. fields[i + 1])
    sum = (sum + tonumber(string.sub(hex, 1, 12), 16)) % 281474976710656 -- 48 bits, since numbers have 53
  end
  return string.format('%.0f', sum)
end

local function is_as_read(key, exists, tag, base)
  if base == '!' or not exists then
    return base == '!' and not exists
  end
  local read_tag, read_digest = string.match(base, '^(%S+) (%d+)$')
  if not redis.sha1hex then -- fakeredis
    return read_tag == (tag or '-')
  end
  return read_digest == digest(redis.call('HGETALL', key))
end

local function put(key, at, last)
  local name, ttl_ms, shape, op = ARGV[at], ARGV[at + 1], ARGV[at + 3], ARGV[at + 4]
  local first, base, server_values = at + 5, '', false
  local size = redis.call('HLEN', key)
  local exists, tag, meta, job = size > 0, nil, nil, nil
  if exists then
    exists, tag, meta, job = inspect(key)
  end
  if op ~= '' then
    local refusal = refuse(key, exists, tag, job, ARGV[at + 5], ARGV[at + 6], ARGV[at + 7])
    if refusal then
      return refusal
    end
    first, base, server_values = at + 10, ARGV[at + 8], ARGV[at + 9] ~= ''
    if base ~= '' and not is_as_read(key, exists, tag, base) then
      return {'lost', read(key)}
    end
  elseif is_leased(job) then
    return {'leased'}
  else
    op = 'put'
  end

  -- A key of another type is found before anything is written: what is known to be in the index was written there by us.
  local due = redis.call('ZSCORE', EXPIRY, name)
  if not (due and exists) then
    check_types(name)
  end
  if server_values then
    check_types(name)
    local field = resolve(not is_scalar(tag, meta) and key, first + 1, last)
    if field then
      return {'no sum', field}
    end
  end
  if exists and not tag then -- another client's hash, perhaps where a job was
    unblock(name)
  end
  local expires_at
  if ttl_ms == '' then -- it stays
    expires_at = redis.call('PEXPIRETIME', key)
    ttl_ms = redis.call('PTTL', key)
  end
  local id, now, new_expiry
  id, expires_at, now, new_expiry = replace(
    key, size, job and job.mark or '', due, ARGV[at + 2], op, name, ttl_ms, expires_at, shape, first, last
  )
  if now % 16 == 0 then -- often enough that the indexes hold little that has expired, seldom enough to cost nothing
    sweep(string.sub(key, 1, #key - #name), now, 100)
  end
  local fields = false
  if server_values or base ~= '' then
    fields = slice(ARGV, first, last)
    fields[#fields + 1], fields[#fields + 2] = '$kv', id .. shape
  end
  return {exists and 'replaced' or 'created', id, expires_at, ttl_ms, fields, new_expiry}
end
