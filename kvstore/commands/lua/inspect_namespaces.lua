-- Which namespaces are empty.
-- KEYS   1 log of the first
-- ARGV   1 what stands before a name in the documents' keys of the first  2… logs of the others
-- reply  a word for each: 'some' or 'none'; or 'unknown' where all its documents may have expired, or another node of a cluster
--        has it: it is to be asked for as the first. That is settled, unless so many documents have expired that Redis does
--        something else in between.

-- What the indexes say. The expiry index may be early, never late: more documents than are due are there.
local function look(log, now)
  local space = string.sub(log, 1, -4)
  local documents = redis.pcall('ZCARD', space .. 'names')
  if type(documents) ~= 'number' then
    return 'unknown'
  elseif documents == 0 then
    return 'none'
  end
  local due = redis.pcall('ZCOUNT', space .. 'expiry', '-inf', now)
  return type(due) == 'number' and documents > due and 'some' or 'unknown'
end

local function inspect_namespaces(_, at, last)
  local now = clock()
  local words = {look(LOG, now)}
  if words[1] == 'unknown' and sweep(ARGV[at], now, MOST_EXPIRED) < MOST_EXPIRED then
    words[1] = redis.call('ZCARD', NAMES) > 0 and 'some' or 'none'
  end
  for i = at + 1, last do
    words[#words + 1] = look(ARGV[i], now)
  end
  return words
end
