-- Read documents of one namespace.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2… their names in names and log
-- reply  {'read', the time in ms, the fields of each (false: it is not there), the ms at which each expires (-1: never)};
--        {'refused'} where a key has another type

local function get_all(_, at, last)
  local prefix, fields, expires_at = ARGV[at], {}, {}
  for i = 1, last - at do
    local key = prefix .. ARGV[at + i]
    local found = redis.pcall('HGETALL', key)
    if found.err then
      return {'refused'}
    end
    fields[i] = #found > 0 and found
    expires_at[i] = fields[i] and redis.call('PEXPIRETIME', key) or -1
  end
  local time = redis.call('TIME')
  return {'read', time[1] * 1000 + math.floor(time[2] / 1000), fields, expires_at}
end
