-- Append a document to a container, under a name made of the change's id: names sort as the changes were made.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 the container's own name in names and log, '' or 'a/b/'
--        3 ttl_ms  4 length of the log  5 what follows the entity-tag in our own field  6 'sv' where values are server values
--        7 ms for which a job is held back, 0 for none  8… field, value, …
-- reply  {'created', entity-tag, the document's name, all its fields, as in put.lua the ms at which the
--        namespace's own keys expire, the ms at which the document does}, {'no sum', field}

local function post(_, at, last)
  local container, delay_ms = ARGV[at + 1], tonumber(ARGV[at + 6])
  check_types(container)
  if delay_ms > 0 then
    check_queue_types()
  end
  if ARGV[at + 5] ~= '' then
    local field = resolve(nil, at + 8, last)
    if field then
      return {'no sum', field}
    end
  end
  -- The entry holds the container's name, and whoever reads it adds the id: it is not known before.
  local id, now = append(ARGV[at + 3], 'post', container, '', ARGV[at + 2], ARGV[at + 4], ARGV, at + 7, last)
  local ms, count = string.match(id, '^(%d+)%-(%d+)$')
  local name = container .. ms .. string.char(96 + #count) .. count
  local key = ARGV[at] .. name
  redis.call('UNLINK', key) -- only what another client, or a PUT, guessed
  redis.call('HSET', key, '$kv', id .. ARGV[at + 4])
  set(key, ARGV, at + 7, last)
  redis.call('PEXPIRE', key, ARGV[at + 2])
  local new_expiry = index(name, nil, now + ARGV[at + 2])
  if tonumber(ARGV[at + 2]) < SOON_MS then
    know_latest(name, id)
  end
  sweep_sometimes(ARGV[at], now)
  if delay_ms > 0 then
    write_mark(key, id .. ARGV[at + 4], 0, nil, now + delay_ms, '-', '-')
    block(name, now + delay_ms)
    work_as_queue(container)
  end
  local fields = slice(ARGV, at + 7, last)
  fields[#fields + 1], fields[#fields + 2] = '$kv', id .. ARGV[at + 4]
  return {'created', id, name, fields, new_expiry, now + ARGV[at + 2]}
end
