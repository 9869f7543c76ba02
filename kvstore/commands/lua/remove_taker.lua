-- Remove somebody who waits for a job no longer.
-- KEYS   1 who waits at the queue, by the ms until which they do
-- ARGV   1 its entry
-- reply  1 if it was there

return redis.call('ZREM', KEYS[1], ARGV[1])
