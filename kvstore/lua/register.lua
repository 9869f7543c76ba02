-- Note in the root's index that a namespace is there, as `name/`; the root is in another slot than the namespace.
-- KEYS   1 log, of the root
-- ARGV   1 the namespace's name and a slash  2 the ms at which its own keys expire
-- reply  {'registered'}

local function register(_, at)
  check_types('')
  local due = redis.call('ZSCORE', EXPIRY, ARGV[at])
  if not due or tonumber(due) < tonumber(ARGV[at + 1]) then
    note(ARGV[at], nil, tonumber(ARGV[at + 1]))
  end
  return {'registered'}
end
