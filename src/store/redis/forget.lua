-- ARGV: offset, whom to wake. Removes whatever stands there, readable or not.
local there = found and (not readable() or live())
local refused = remove()
if refused then
  return refused
end
tell(ARGV[2])
return {1, there and 1 or 0}
