-- Count the jobs of the queues of a namespace by their state. Nothing is written.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys  2 most queues
-- reply  {container, ready, leased, delayed, dead} for each: the container's name in names and log, '' or 'a/b/'

local MOST_MARKS = 1000 -- jobs of a queue whose marks are read: of what else is blocked, most is delayed, since takes go by name

local function count_jobs(_, at)
  local prefix, most = ARGV[at], tonumber(ARGV[at + 1])
  local now = clock()
  local counted = {}
  for _, marker in ipairs(redis.call('ZRANGEBYSCORE', READY_AT, 'inf', 'inf', 'LIMIT', 0, most)) do
    local container = string.sub(marker, 1, -2)
    local dead = redis.call('ZLEXCOUNT', NAMES, range_below(container .. 'dead/'))
    local results = redis.call('ZLEXCOUNT', NAMES, range_below(container .. 'results/'))
    local low, high = range_below(container)
    local all = redis.call('ZLEXCOUNT', NAMES, low, high) - dead - results
    local leased, delayed = 0, redis.call('ZLEXCOUNT', BLOCKED, low, high)
    for _, name in ipairs(redis.call('ZRANGEBYLEX', BLOCKED, low, high, 'LIMIT', 0, MOST_MARKS)) do
      local job = read_mark(redis.call('HGET', prefix .. name, '$kv') or '')
      if is_leased(job) then
        leased, delayed = leased + 1, delayed - 1
      elseif not job or job.ready_at <= now then
        delayed = delayed - 1
      end
    end
    counted[#counted + 1] = {container, math.max(0, all - leased - delayed), leased, delayed, dead}
  end
  return counted
end
