-- Read a document.
-- KEYS   1 document
-- reply  {fields, expires_at_ms, ttl_ms}, or nil where nothing is there

return read(KEYS[1])
