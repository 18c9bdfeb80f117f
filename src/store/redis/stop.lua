-- The end of an attempt without an answer.
-- ARGV: offset, whom to wake, owner, time to live, how: fail, release or give_back.
if record.err then
  return record
end
local owner, ttl, how = ARGV[3], ARGV[4], ARGV[5]
if not found or not readable(owner) or not live() or record[OWNER] ~= owner
  or record[STATE] ~= 'in_progress' then
  return kept_without_bytes()
end
local refused
if how == 'give_back' and record[ENTRY] == 'takeover' then
  refused = put(ttl, 'owner', string.rep('0', 32), 'lease_until', now, 'expires_at', add(now, ttl))
elseif how ~= 'fail' and record[ATTEMPT] == '1' and not record[CHECKPOINT] then
  refused = remove()
else
  refused = put(ttl, 'state', 'failed', 'lease_until', now, 'expires_at', add(now, ttl))
end
if refused then
  return refused
end
tell(ARGV[2])
return {1}
