-- Whether anything lies in a namespace.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys
-- reply  {'some'} or {'none'}

local function census(_, at)
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  repeat
    local due = sweep(ARGV[at], now, 100)
  until due < 100
  return {redis.call('ZCARD', NAMES) > 0 and 'some' or 'none'}
end
