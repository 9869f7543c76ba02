-- Change members of a document and leave the others alone (RFC 7396, where no member of the patch is an object).
-- KEYS   1 log  2 document
-- ARGV   1 the document's name in names and log  2 ttl_ms, '' to keep the expiry  3 If-Match  4 If-None-Match
--        5 If-Unmodified-Since (s)  6 length of the log  7 ttl_ms of a document that this creates  8 most members
--        9 most bytes  10 'sv' where values are server values  11 what follows the entity-tag in our own field of an object
--        that this creates  12… field, value, …; the value '' takes the member away
-- reply  {'created' or 'replaced', what is there now, as in put.lua the ms at which the namespace's own keys expire},
--        {'failed', what is there}, {'leased'}, {'no sum', field}, {'too many'}, {'too large'} where the
--        document would have too many members or bytes

-- How many bytes names are longer as JSON.
local function count_escapes(names)
  local all = table.concat(names)
  if not string.find(all, '"', 1, true) and not string.find(all, '\\', 1, true) and string.find(all, '^%C*$') then
    return 0
  end
  local odd = {}
  for _, name in ipairs(names) do
    if string.find(name, '[%c"\\]') then
      odd[#odd + 1] = name
    end
  end
  odd = table.concat(odd)
  local short, long = string.gsub(odd, '["\\\b\t\n\f\r]+', ''), string.gsub(odd, '[%z\1-\7\11\14-\31]+', '')
  return #odd - #short + 5 * (#odd - #long)
end

local function patch(key, at, last)
  local name, ttl_ms = ARGV[at], ARGV[at + 1]
  local exists, tag, meta, job = inspect(key)
  local refusal = refuse(key, exists, tag, job, ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
  if refusal then
    return refusal
  end
  local due = check_types(name)
  if ARGV[at + 9] ~= '' then
    local field = resolve(not is_scalar(tag, meta) and key, at + 12, last)
    if field then
      return {'no sum', field}
    end
  end

  -- The document as it will be. One that is not an object is replaced by one.
  local is_object = exists and not is_scalar(tag, meta)
  local shape = ARGV[at + 10]
  if is_object then
    shape = tag and string.sub(meta, #tag + 1) or ' object'
  end
  local fields, place = {}, {} -- a value false: the member is taken away
  local changed, added, gone, escaped = {}, {}, {}, {}
  if is_object then
    local stored = redis.call('HGETALL', key)
    for i = 1, #stored, 2 do
      local field = stored[i]
      if not tag and string.find(field, '^%$kv%$*$') then -- in another client's hash no name has a dollar sign of ours yet
        if field ~= '$kv' then -- that one is written over
          gone[#gone + 1] = field
        end
        field = field .. '$'
        escaped[#escaped + 1] = field
      end
      if not (tag and field == '$kv') then
        fields[#fields + 1], fields[#fields + 2] = field, stored[i + 1]
        place[field] = #fields
      end
    end
  end
  for i = at + 11, last, 2 do
    local field, value = ARGV[i], ARGV[i + 1]
    if value ~= '' then
      if not place[field] then
        fields[#fields + 1] = field
        place[field] = #fields + 1
        added[#added + 1] = field
      end
      fields[place[field]] = value
      changed[#changed + 1], changed[#changed + 2] = field, value
    elseif place[field] then
      fields[place[field]] = false
      gone[#gone + 1] = field
    end
  end
  for _, field in ipairs(escaped) do
    if fields[place[field]] then
      changed[#changed + 1], changed[#changed + 2] = field, fields[place[field]]
    end
  end
  local flat, size, bytes, names = {'$kv', ''}, 2, 1, {} -- two braces, less the comma that the last member has not
  for i = 1, #fields, 2 do
    local field, value = fields[i], fields[i + 1]
    if value then
      flat[size + 1], flat[size + 2] = field, value
      size = size + 2
      bytes = bytes + #field + #value + 4 -- two quotes, a colon, a comma
      names[#names + 1] = field
    end
  end
  bytes = bytes + count_escapes(names)
  if size - 2 > 2 * ARGV[at + 7] then
    return {'too many'}
  end
  if bytes > tonumber(ARGV[at + 8]) then
    return {'too large'}
  end

  if is_object then
    shape = with_added(shape, added)
  end
  if #shape > bytes + 64 then -- it has names that are gone, or that come twice
    shape = without_gone(shape, flat)
  end

  if due and not exists then
    erasing().expire(name)
  elseif exists and not tag then -- another client's hash, perhaps where a job was
    unblock(name)
  end
  if not exists and ttl_ms == '' then
    ttl_ms = ARGV[at + 6]
  end
  local logged_ttl_ms = ttl_ms == '' and redis.call('PTTL', key) or ttl_ms
  local id, now = append(ARGV[at + 5], 'patch', name, tag or '', logged_ttl_ms, shape, flat, 3, size)
  flat[2] = (job and job.mark or '') .. id .. shape
  redis.call('HSET', key, flat[1], flat[2]) -- first: an empty hash would lose its expiry
  if is_object then
    for from = 1, #gone, MOST_ARGUMENTS do
      redis.call('HDEL', key, unpack(gone, from, math.min(from + MOST_ARGUMENTS - 1, #gone)))
    end
  elseif exists then
    redis.call('HDEL', key, '$value')
  end
  set(key, changed, 1, #changed)
  if ttl_ms ~= '' then
    redis.call('PEXPIRE', key, ttl_ms)
  end
  local expires_at = redis.call('PEXPIRETIME', key)
  local new_expiry = index(name, exists and due, expires_at >= 0 and expires_at)
  if expires_at >= 0 and expires_at - now < SOON_MS then
    know_latest(name, id)
  end
  sweep_sometimes(string.sub(key, 1, #key - #name), now)
  return {exists and 'replaced' or 'created', {flat, expires_at, redis.call('PTTL', key)}, new_expiry}
end
