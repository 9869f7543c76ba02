-- Note in the root's index that a namespace is there, as `name/`; the root is in another slot than the namespace.
-- KEYS   1 log, of the root
-- ARGV   1 the namespace's name and a slash  2 the ms at which its own keys expire
-- reply  {'registered'}, or {'not'}: where Redis is full, or another client's keys are in the way. The write that this follows
--        is done all the same, and the next one that is new to its namespace's indexes asks again.

local function index_namespace(name, at)
  check_types('')
  local due = redis.call('ZSCORE', EXPIRY, name)
  if not due or tonumber(due) < at then
    index(name, nil, at)
  end
end

local function register_namespace(_, at)
  return {pcall(index_namespace, ARGV[at], tonumber(ARGV[at + 1])) and 'registered' or 'not'}
end
