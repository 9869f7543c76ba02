-- Whether anything lies in a namespace.
-- KEYS   1 log
-- ARGV   1 what stands before a name in the documents' keys
-- reply  {'some'} or {'none'}; {'again'} where so many documents have expired that Redis does something else in between

local MOST_EXPIRED = 1000 -- documents, in one call

local function is_namespace_empty(_, at)
  if sweep(ARGV[at], clock(), MOST_EXPIRED) == MOST_EXPIRED then
    return {'again'}
  end
  return {redis.call('ZCARD', NAMES) > 0 and 'some' or 'none'}
end
