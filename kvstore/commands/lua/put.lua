-- Replace a document as a whole, or create it.
-- KEYS   1 log  2 document
-- ARGV   1 the document's name in names and log  2 ttl_ms  3 length of the log  4 what follows the entity-tag in our own field
--        5 '' for a plain PUT; 6… field, value, …
--        5 else 'put', or 'patch' for a document that was read, changed, and is written back: it keeps its expiry if ttl_ms is
--        ''  6 If-Match  7 If-None-Match  8 If-Unmodified-Since (s)  9 what the document was read as: '' for anything, '!' for
--        nothing, else its tag or '-', and the digest of its values  10 'sv' if some values are server values, else ''
--        11 how many fields it had then, and their names  … field, value, …
-- reply  {'created' or 'replaced', entity-tag, expires_at_ms (-1: never), ttl_ms, nil or all fields where they are not those
--        that were sent, nil or the ms at which the namespace's own keys expire where that is new}
--        {'failed', what is there}, {'leased'}, {'lost', what is there} where it is no longer as it was read, {'no sum', field}

-- Whether a hash of `size` fields holds what it was read as: under the names in ARGV[first..last], which are as many, the values
-- of which `digest` was made. A job's state is among them. The entity-tag alone would not do: other clients write fields and
-- leave it as it is.
local function is_as_read(key, size, tag, base, first, last)
  if base == '!' or size == 0 then
    return base == '!' and size == 0
  elseif size ~= last - first + 1 then
    return false
  end
  local read_tag, digest = string.match(base, '^(%S+) (%S+)$')
  if not redis.sha1hex then -- fakeredis
    return read_tag == (tag or '-')
  end
  local values, sizes = {}, {}
  for from = first, last, MOST_ARGUMENTS do
    for _, value in ipairs(redis.call('HMGET', key, unpack(ARGV, from, math.min(from + MOST_ARGUMENTS - 1, last)))) do
      if not value then
        return false
      end
      values[#values + 1], sizes[#sizes + 1] = value, #value
    end
  end
  return digest == redis.sha1hex(table.concat(sizes, ' ') .. ':' .. table.concat(values))
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
    first, base, server_values = at + 11 + ARGV[at + 10], ARGV[at + 8], ARGV[at + 9] ~= ''
    if base ~= '' and not is_as_read(key, size, tag, base, at + 11, first - 1) then
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
    key, size, tag, job and job.mark or '', due, ARGV[at + 2], op, name, ttl_ms, expires_at, shape, first, last
  )
  sweep_sometimes(string.sub(key, 1, #key - #name), now)
  local fields = false
  if server_values or base ~= '' then
    fields = slice(ARGV, first, last)
    fields[#fields + 1], fields[#fields + 2] = '$kv', id .. shape
  end
  return {exists and 'replaced' or 'created', id, expires_at, ttl_ms, fields, new_expiry}
end
