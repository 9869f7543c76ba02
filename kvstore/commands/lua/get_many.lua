-- Read documents of one namespace.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 most bytes to read, about  3… names in names and log
-- reply  {the time in ms, for each document its fields, false where it is not there, or 1 where it was not read, for its key has
--        another type or the others have been enough, the ms at which each expires (-1: never)}

local function get_many(_, at, last)
  local prefix, left, members, fields, expires_at = ARGV[at], tonumber(ARGV[at + 1]), 0, {}, {}
  for i = 1, last - at - 1 do
    local key = prefix .. ARGV[at + 1 + i]
    local found = left > 0 and members < MOST_MEMBERS and redis.pcall('HGETALL', key)
    fields[i], expires_at[i] = 1, -1
    if found and not found.err then
      fields[i] = #found > 0 and found
      members = members + #found / 2
      for value = 2, #found, 2 do
        left = left - #found[value]
      end
      expires_at[i] = fields[i] and redis.call('PEXPIRETIME', key) or -1
    end
  end
  return {clock(), fields, expires_at}
end
