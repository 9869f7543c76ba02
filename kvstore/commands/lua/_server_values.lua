-- Server values: what a write asks Redis to fill in. Source: Firebase's `.sv`, HINCRBY.

-- Server values (Firebase's): where a value in ARGV[first..last] is '@' it becomes the time in ms, where it is '+n' the sum of
-- n and the integer that is stored there (0 where nothing is); JSON texts start with neither. Returns the name of a field of
-- which there is no sum.
local function resolve(key, first, last)
  -- An integer of few enough digits for a number of Lua, spelled as Redis spells it.
  local function is_short_integer(text)
    return #text < 16 and (text == '0' or string.find(text, '^%-?[1-9]%d*$'))
  end

  -- Add to what is stored under these positions of ARGV what ARGV asks for, '+n'. Returns the name of a field of which there is no
  -- sum. Numbers of Lua have 53 bits, so Redis adds long integers, in the scratch hash.
  local function add_up(key, positions)
    local names, long, long_at = {}, {}, {}
    for i, at in ipairs(positions) do
      names[i] = ARGV[at - 1]
    end
    local stored = key and redis.call('HMGET', key, unpack(names)) or {}
    for i, at in ipairs(positions) do
      local had, added = stored[i] or '0', string.sub(ARGV[at], 2)
      if is_short_integer(had) and is_short_integer(added) then
        ARGV[at] = string.format('%.0f', tonumber(had) + tonumber(added))
      else
        long[#long + 1], long[#long + 2], long_at[#long_at + 1] = at, had, at
      end
    end
    if #long == 0 then
      return
    end
    redis.call('HSET', SCRATCH, unpack(long))
    local refused
    for _, at in ipairs(long_at) do
      local sum = redis.pcall('HINCRBY', SCRATCH, at, string.sub(ARGV[at], 2))
      if type(sum) == 'table' then
        refused = ARGV[at - 1]
        break
      end
    end
    for i, sum in ipairs(redis.call('HMGET', SCRATCH, unpack(long_at))) do
      ARGV[long_at[i]] = sum
    end
    redis.call('DEL', SCRATCH)
    return refused
  end

  local now, sums = string.format('%.0f', clock()), {}
  for i = first, last, 2 do
    local kind = string.sub(ARGV[i], 1, 1)
    if kind == '@' then
      ARGV[i] = now
    elseif kind == '+' then
      sums[#sums + 1] = i
    end
  end
  for from = 1, #sums, MOST_ARGUMENTS / 2 do
    local refused = add_up(key, slice(sums, from, math.min(from + MOST_ARGUMENTS / 2 - 1, #sums)))
    if refused then
      return refused
    end
  end
end
