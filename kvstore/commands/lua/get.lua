-- Read a document, or only what its header fields say of it; read.lua is the one that reads without conditions.
-- KEYS   1 log  2 document
-- ARGV   1 the document's name in names and log  2 If-Match  3 If-Unmodified-Since (s)  4 If-None-Match
--        5 If-Modified-Since (s)  6 'head' if the value is not asked for, else ''
-- reply  {'read', what is there}, {'missing'}, {'failed', what is there}; {'seen', the same without the value} where it is not
--        asked for, or is what the client has

-- Whether a client has what is there (RFC 9110 section 13.2.2).
local function is_known(tag, none_match, modified_since_s)
  if none_match ~= '' then
    return none_match == '*' or (tag and string.find(none_match, ' ' .. tag .. ' ', 1, true))
  end
  return modified_since_s ~= '' and tag and math.floor(string.match(tag, '^%d+') / 1000) <= tonumber(modified_since_s)
end

local function get(key, at)
  local exists, tag, meta = inspect(key)
  if not exists then
    return {'missing'}
  elseif fails(exists, tag, ARGV[at + 1], '', ARGV[at + 2]) then
    return {'failed', read(key)}
  elseif ARGV[at + 5] == 'head' or is_known(tag, ARGV[at + 3], ARGV[at + 4]) then
    return {'seen', {{'$kv', meta or ''}, redis.call('PEXPIRETIME', key), redis.call('PTTL', key)}}
  end
  return {'read', read(key)}
end
