-- wrk: GET random documents.
--   wrk -s get.lua URL -- PATH COUNT      "@" in PATH becomes a number from 1 to COUNT

local count, head, tail

function init(args)
  count = tonumber(args[2])
  head, tail = wrk.format("GET", args[1]):match("^(.-)@(.*)$")
end

function request()
  return head .. math.random(count) .. tail
end
