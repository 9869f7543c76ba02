-- wrk: PUT one body to random documents.
--   wrk -s put.lua URL -- PATH COUNT BODY      "@" in PATH becomes a number from 1 to COUNT

local count, head, tail

function init(args)
  count = tonumber(args[2])
  wrk.headers["Content-Type"] = "application/json"
  local request = wrk.format("PUT", args[1], nil, args[3])
  head, tail = request:match("^(.-)@(.*)$")
end

function request()
  return head .. math.random(count) .. tail
end
