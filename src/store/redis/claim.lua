-- ARGV: offset, owner, algorithm, digest, lease, time to live, whether to take over.
if record.err then
  return record
end
local owner, algorithm, digest, lease, ttl = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local token, attempt, entry, created, checkpoint = now, '1', 'first', now, false

if found then
  if not readable(owner, digest) then
    return kept_without_bytes()
  end
  local next_token = add(record[TOKEN], '1')
  if before(now, next_token) then
    token = next_token
  end
  if live() then
    if record[ALGORITHM] ~= algorithm or record[DIGEST] ~= digest then
      return kept_without_bytes()
    end
    local state = record[STATE]
    if state == 'completed' then
      return kept()
    elseif state == 'in_progress' and record[OWNER] == owner then
      token, attempt, entry = record[TOKEN], record[ATTEMPT], record[ENTRY]
    elseif state == 'in_progress' and (before(now, record[LEASE_UNTIL]) or ARGV[7] ~= '1') then
      return kept_without_bytes()
    else
      entry = state == 'failed' and 'retry' or 'takeover'
      attempt = string.format('%.0f', math.min(tonumber(record[ATTEMPT]) + 1, tonumber(U32)))
    end
    created, checkpoint = record[CREATED], record[CHECKPOINT]
  else
    local refused = remove()
    if refused then
      return refused
    end
  end
end

local lease_until = add(now, lease)
local refused = put(add(lease, ttl), 'v', '1', 'state', 'in_progress', 'algorithm', algorithm,
  'fingerprint', digest, 'owner', owner, 'token', token, 'attempt', attempt, 'entry', entry,
  'created_at', created, 'lease_until', lease_until, 'expires_at', add(lease_until, ttl))
if refused then
  return refused
end
return {1, token, attempt, entry, checkpoint}
