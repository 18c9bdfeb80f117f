-- What the scripts share.
--
-- Numbers stay decimal text, as they are kept: Lua's have no room for 64 bits.

local U64, U32, U16 = '18446744073709551615', '4294967295', '65535'

local function before(a, b)
  if #a ~= #b then
    return #a < #b
  end
  return a < b
end

local function halves(text)
  text = string.rep('0', 20 - #text) .. text
  return tonumber(string.sub(text, 1, 10)), tonumber(string.sub(text, 11))
end

-- Saturates at the greatest number of 64 bits.
local function add(a, b)
  local sum = tonumber(a) + tonumber(b)
  if sum < 9007199254740992 then
    return string.format('%.0f', sum)
  end
  local a_high, a_low = halves(a)
  local b_high, b_low = halves(b)
  local high, low = a_high + b_high, a_low + b_low
  if low >= 1e10 then
    high, low = high + 1, low - 1e10
  end
  local text = string.format('%010.0f%010.0f', high, low)
  if text > U64 then
    return U64
  end
  return (string.gsub(text, '^0+', ''))
end

local found = record[V] or redis.call('EXISTS', KEYS[1]) == 1

local now = time[1] .. string.rep('0', 6 - #time[2]) .. time[2]
if ARGV[1] ~= '0' then
  now = add(now, ARGV[1])
end

local function is_number(text, most)
  return text and #text <= #most and string.find(text, '^%d+$')
    and (text == '0' or string.byte(text) ~= 48) and not before(most, text)
end

local function is_hex(text, length)
  return text and #text == length and not string.find(text, '[^0-9a-f]')
end

-- Whether this version knows what every field means. What it does not know it does not change.
-- What the client sent as its own owner and digest needs no look.
local function readable(owner, digest)
  local state, entry, algorithm = record[STATE], record[ENTRY], record[ALGORITHM]
  local completed = state == 'completed'
  return record[V] == '1'
    and (completed or state == 'in_progress' or state == 'failed')
    and (entry == 'first' or entry == 'retry' or entry == 'takeover')
    and algorithm and #algorithm >= 1 and #algorithm <= 16
    and not string.find(algorithm, '[^!-9;-~]')
    and (record[DIGEST] == digest or is_hex(record[DIGEST], 64))
    and (record[OWNER] == owner or is_hex(record[OWNER], 32))
    and is_number(record[TOKEN], U64)
    and is_number(record[ATTEMPT], U32)
    and is_number(record[CREATED], U64)
    and is_number(record[LEASE_UNTIL], U64)
    and is_number(record[EXPIRES], U64)
    and (completed and is_number(record[CODE], U16) and record[BODY]
      or not completed and not record[CODE] and not record[BODY])
end

local function live()
  return before(now, record[EXPIRES])
end

-- Nothing is changed. The client says why, from what there is.
local function kept()
  return {0, now, found and record or false}
end

-- The same where the answer does not depend on the bytes.
local function kept_without_bytes()
  record[CHECKPOINT] = record[CHECKPOINT] and ''
  record[BODY] = record[BODY] and ''
  return kept()
end

-- When the server may drop the record by itself: never before it expires. A test's offset is not in
-- it, since the server's clock knows none.
local function drop_at(stays)
  local ms = tonumber(time[1]) * 1000 + math.ceil((tonumber(time[2]) + tonumber(stays)) / 1000) + 1
  return string.format('%.0f', math.min(ms, 9e15))
end

-- Writes these fields of a record that stays so long. Returns the error if it may not.
--
-- A server whose memory is full lets a script go on that has begun to write, so what changes a record
-- begins with its expiry: a renewal and an end get in. A new record does not.
local function put(stays, ...)
  if found then
    local done = redis.pcall('PEXPIREAT', KEYS[1], drop_at(stays))
    if type(done) == 'table' and done.err then
      return done
    end
    redis.call('HSET', KEYS[1], ...)
  else
    local done = redis.pcall('HSET', KEYS[1], ...)
    if type(done) == 'table' and done.err then
      return done
    end
    redis.call('PEXPIREAT', KEYS[1], drop_at(stays))
  end
end

local function remove()
  local done = redis.pcall('DEL', KEYS[1])
  if type(done) == 'table' and done.err then
    return done
  end
  found = false
end

-- Tells who waits that the claim has ended. Where that is not allowed, they find out by themselves.
local function tell(whom)
  redis.pcall('PUBLISH', 'tower-idempotency', whom)
end

