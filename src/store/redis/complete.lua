-- ARGV: offset, whom to wake, owner, token, attempt, algorithm, digest, time to live, code, body.
if record.err then
  return record
end
local owner, token, attempt, algorithm, digest = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local ttl, code, body = ARGV[8], ARGV[9], ARGV[10]
local entry, created = 'first', now

if found then
  if not readable(owner, digest) then
    return kept_without_bytes()
  end
  if live() then
    if record[OWNER] ~= owner or record[STATE] == 'completed' then
      return kept_without_bytes()
    end
    entry, created = record[ENTRY], record[CREATED]
  end
end

local refused = put(ttl, 'v', '1', 'state', 'completed', 'algorithm', algorithm,
  'fingerprint', digest, 'owner', owner, 'token', token, 'attempt', attempt, 'entry', entry,
  'created_at', created, 'lease_until', now, 'expires_at', add(now, ttl),
  'code', code, 'body', body)
if refused then
  return refused
end
if record[CHECKPOINT] then
  redis.call('HDEL', KEYS[1], 'checkpoint')
end
tell(ARGV[2])
return {1}
