-- Writes nothing, so nothing is replicated.
if record.err then
  return record
end
return kept()
