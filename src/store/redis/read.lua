-- What each script begins with: the record and the clock.
-- KEYS[1] is the record, ARGV[1] what a test adds to the clock.

local V, STATE, ALGORITHM, DIGEST, OWNER, TOKEN, ATTEMPT = 1, 2, 3, 4, 5, 6, 7
local ENTRY, CREATED, LEASE_UNTIL, EXPIRES, CHECKPOINT, CODE, BODY = 8, 9, 10, 11, 12, 13, 14

local record = redis.pcall('HMGET', KEYS[1], 'v', 'state', 'algorithm', 'fingerprint', 'owner',
  'token', 'attempt', 'entry', 'created_at', 'lease_until', 'expires_at', 'checkpoint', 'code',
  'body')
local time = redis.call('TIME')

