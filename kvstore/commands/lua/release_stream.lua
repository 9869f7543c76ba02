-- Give up a place among the open streams of a client.
-- KEYS   the client's streams
-- ARGV   the stream
-- reply  1 if it had a place

return redis.call('ZREM', KEYS[1], ARGV[1])
