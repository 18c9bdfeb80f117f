-- A replay, before the functions that all else needs: to make them takes as long as all of this.
-- ARGV: those of a claim.
--
-- It changes nothing, so it need not know that all can be read: the client looks at that. A time is
-- exact as a number below 2^53, until the year 2255.
if record[STATE] == 'completed' and record[DIGEST] == ARGV[4] and record[ALGORITHM] == ARGV[3] then
  local now, expires = time[1] * 1e6 + time[2] + ARGV[1], tonumber(record[EXPIRES])
  if expires and now < expires and now < 9007199254740992 then
    return {0, string.format('%.0f', now), record}
  end
end

