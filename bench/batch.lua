-- wrk: batches of 1,000 requests, each batch on one of some namespaces.
--   wrk -s batch.lua URL -- METHOD NAMESPACES BODY      BODY is a document, empty for none

local bodies, turn = {}, 0

function init(args)
  for namespace = 1, tonumber(args[2]) do
    local requests = {}
    for i = 1, 1000 do
      local body = args[3] ~= "" and ',"body":' .. args[3] or ""
      requests[i] = string.format('{"method":"%s","path":"/batch%d/%d"%s}', args[1], namespace, i, body)
    end
    bodies[namespace] = '{"requests":[' .. table.concat(requests, ",") .. "]}"
  end
end

function request()
  turn = turn % #bodies + 1
  return wrk.format("POST", "/_/batch", { ["Content-Type"] = "application/json" }, bodies[turn])
end
