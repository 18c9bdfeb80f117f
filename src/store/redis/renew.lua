-- ARGV: offset, whom to wake, owner, lease, time to live, and the checkpoint if there is one.
if record.err then
  return record
end
local owner, lease, ttl, checkpoint = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if not found or not readable(owner) or not live() or record[OWNER] ~= owner
  or record[STATE] ~= 'in_progress' then
  return kept_without_bytes()
end
local lease_until = add(now, lease)
local fields = {'lease_until', lease_until, 'expires_at', add(lease_until, ttl)}
if checkpoint then
  fields[5], fields[6] = 'checkpoint', checkpoint
end
local refused = put(add(lease, ttl), unpack(fields))
if refused then
  return refused
end
if lease == '0' then
  tell(ARGV[2])
end
return {1}
