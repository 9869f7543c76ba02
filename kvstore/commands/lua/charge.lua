-- Count requests of a client in a window of time, which begins with the first.
-- KEYS   the counter
-- ARGV   cost, quota, window in ms, how many more the caller would take
-- reply  {1 if admitted, how many more were taken, how many are left, ms until the window ends}

local cost, quota, window_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local used, left_ms = tonumber(redis.call('GET', KEYS[1]) or 0), redis.call('PTTL', KEYS[1])
if left_ms < 0 then -- no window, or a counter that a failed script left without its end
  used, left_ms = 0, window_ms
end
-- What costs more than a quota is admitted in a window of its own, which lasts accordingly longer.
if used + cost > quota and used > 0 then
  return {0, 0, math.max(quota - used, 0), left_ms}
end
local left = math.max(quota - used - cost, 0)
local spare = math.min(tonumber(ARGV[4]), math.floor(left / 16))
local counted
if used == 0 then
  left_ms = window_ms * math.ceil(cost / quota)
  counted = redis.pcall('SET', KEYS[1], cost + spare, 'PX', left_ms)
else
  counted = redis.pcall('INCRBY', KEYS[1], cost + spare)
end
if type(counted) == 'table' and counted.err then -- a full Redis: reads and deletes go on, and are not counted
  spare = 0
end
return {1, spare, left - spare, left_ms}
