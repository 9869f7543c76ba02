-- Change when a document expires, and nothing else: no entity-tag, no event.
-- KEYS   1 log  2 document
-- ARGV   1 the document's name in names and log  2 ttl_ms  3 If-Match  4 If-None-Match  5 If-Unmodified-Since (s)
-- reply  {'touched', what is there, as in put.lua the ms at which the namespace's own keys expire},
--        {'missing'}, {'failed', what is there}, {'leased'}

local function set_ttl(key, at)
  local name = ARGV[at]
  local exists, tag, _, job = inspect(key)
  local refusal = refuse(key, exists, tag, job, ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
  if refusal then
    return refusal
  end
  if not exists then
    return {'missing'}
  end
  local due = check_types(name)
  redis.call('PEXPIRE', key, ARGV[at + 1])
  local new_expiry = index(name, due, redis.call('PEXPIRETIME', key))
  if tag and tonumber(ARGV[at + 1]) < SOON_MS then
    know_latest(name, tag)
  end
  return {'touched', read(key), new_expiry}
end
