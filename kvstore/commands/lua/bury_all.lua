-- Bury the dead jobs of one take.
-- KEYS   1 log
-- ARGV   of each job how many arguments it has, then these, as in bury.lua
-- reply  {'buried', as in put.lua the ms at which the namespace's own keys expire}; one that bury.lua says is lost stays

local function bury_all(_, at, last)
  local news = false
  while at <= last do
    local stop = at + ARGV[at]
    news = bury(nil, at + 1, stop)[2] or news
    at = stop + 1
  end
  return {'buried', news}
end
