//! How a record stands in memcached: the key of its item, and the bytes of its value.
//!
//! ```text
//! version 1 | state | entry | algorithm's length | algorithm | digest 32 | owner 16 | token 8
//! | attempt 4 | created at 8 | lease until 8 | expires at 8
//! | has checkpoint | [length 4 | checkpoint] | has answer | [code 2 | length 4 | answer]
//! ```
//!
//! Numbers have their greatest byte first; where no length is named a field is one byte. Nothing
//! stands behind the last field.

use std::{error::Error, fmt};

use bytes::{Buf, BufMut, Bytes};
use sha2::{Digest, Sha256};
use tower_idempotency::{
    Entry, FencingToken, Fingerprint, OwnerId, Payload, Record, State, StoreKey, Timestamp,
};

/// Raise it whenever the layout changes, and read the old ones for as long as records live.
const VERSION: u8 = 1;

/// memcached takes no longer keys.
const LONGEST_KEY: usize = 250;

/// The key of a record's item: the store key's text where memcached takes it, else `#` and the
/// text's SHA-256 in hex. A text that begins with `#` is hashed too, so that the two never meet.
///
/// A space or a line break in a key would end it, and what follows would be a command: a key that
/// holds anything but visible ASCII never reaches the wire (I11).
pub(crate) fn item_key(key: &StoreKey) -> String {
    let text = key.as_str();
    let plain = !text.starts_with('#')
        && text.len() <= LONGEST_KEY
        && text.bytes().all(|byte| matches!(byte, b'!'..=b'~'));
    match plain && !text.is_empty() {
        true => text.to_owned(),
        false => {
            let digest = Sha256::digest(text);
            let hex = digest.iter().map(|byte| format!("{byte:02x}"));
            format!("#{}", hex.collect::<String>())
        }
    }
}

/// `None` where a part is too long for its length.
pub(crate) fn encode(record: &Record) -> Option<Bytes> {
    let long = |bytes: Option<&Bytes>| bytes.map_or(0, Bytes::len);
    let answer = record.payload.as_ref().map(|payload| &payload.bytes);
    let mut value = Vec::with_capacity(128 + long(record.checkpoint.as_ref()) + long(answer));
    value.put_u8(VERSION);
    value.put_u8(match record.state {
        State::InProgress => 0,
        State::Completed => 1,
        State::Failed => 2,
    });
    value.put_u8(match record.entry {
        Entry::First => 0,
        Entry::Retry => 1,
        Entry::Takeover => 2,
    });
    let algorithm = record.fingerprint.algorithm();
    value.put_u8(u8::try_from(algorithm.len()).ok()?);
    value.put_slice(algorithm.as_bytes());
    value.put_slice(record.fingerprint.digest());
    value.put_u128(record.owner.as_u128());
    value.put_u64(record.token.as_u64());
    value.put_u32(record.attempt);
    for time in [record.created_at, record.lease_until, record.expires_at] {
        value.put_u64(time.as_micros());
    }
    value.put_u8(record.checkpoint.is_some().into());
    if let Some(checkpoint) = &record.checkpoint {
        put_bytes(&mut value, checkpoint)?;
    }
    value.put_u8(record.payload.is_some().into());
    if let Some(Payload { code, bytes }) = &record.payload {
        value.put_u16(*code);
        put_bytes(&mut value, bytes)?;
    }
    Some(value.into())
}

fn put_bytes(value: &mut Vec<u8>, bytes: &Bytes) -> Option<()> {
    value.put_u32(u32::try_from(bytes.len()).ok()?);
    value.put_slice(bytes);
    Some(())
}

/// Reads a value that anybody may have written: whatever it holds, this is a record or an error,
/// and no panic (U18).
pub(crate) fn decode(mut value: Bytes) -> Result<Record, Unreadable> {
    let value = &mut value;
    if byte(value, "version")? != VERSION {
        return Err(Unreadable("version"));
    }
    let state = match byte(value, "state")? {
        0 => State::InProgress,
        1 => State::Completed,
        2 => State::Failed,
        _ => return Err(Unreadable("state")),
    };
    let entry = match byte(value, "entry")? {
        0 => Entry::First,
        1 => Entry::Retry,
        2 => Entry::Takeover,
        _ => return Err(Unreadable("entry")),
    };
    let length = byte(value, "algorithm")?.into();
    let algorithm = bytes(value, length, "algorithm")?;
    let algorithm = std::str::from_utf8(&algorithm).map_err(|_| Unreadable("algorithm"))?;
    let mut digest = [0; 32];
    let read = value.try_copy_to_slice(&mut digest);
    read.map_err(|_| Unreadable("digest"))?;
    let fingerprint = Fingerprint::from_parts(algorithm, digest);
    let fingerprint = fingerprint.map_err(|_| Unreadable("algorithm"))?;
    let owner = value.try_get_u128().map_err(|_| Unreadable("owner"))?;
    let token = number(value, "token")?;
    let attempt = value.try_get_u32().ok().filter(|attempt| *attempt > 0);
    let attempt = attempt.ok_or(Unreadable("attempt"))?;
    let created_at = number(value, "created at")?;
    let lease_until = number(value, "lease until")?;
    let expires_at = number(value, "expires at")?;
    let checkpoint = match flag(value, "checkpoint")? {
        true => Some(long_bytes(value, "checkpoint")?),
        false => None,
    };
    let payload = match flag(value, "answer")? {
        true => Some(Payload {
            code: value.try_get_u16().map_err(|_| Unreadable("code"))?,
            bytes: long_bytes(value, "answer")?,
        }),
        false => None,
    };
    if payload.is_some() != (state == State::Completed) {
        return Err(Unreadable("answer"));
    }
    if value.has_remaining() {
        return Err(Unreadable("end"));
    }
    Ok(Record {
        state,
        fingerprint,
        owner: OwnerId::from_u128(owner),
        token: FencingToken::from_u64(token),
        attempt,
        entry,
        checkpoint,
        payload,
        created_at: Timestamp::from_micros(created_at),
        lease_until: Timestamp::from_micros(lease_until),
        expires_at: Timestamp::from_micros(expires_at),
    })
}

fn byte(value: &mut Bytes, field: &'static str) -> Result<u8, Unreadable> {
    value.try_get_u8().map_err(|_| Unreadable(field))
}

fn flag(value: &mut Bytes, field: &'static str) -> Result<bool, Unreadable> {
    match byte(value, field)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Unreadable(field)),
    }
}

fn number(value: &mut Bytes, field: &'static str) -> Result<u64, Unreadable> {
    value.try_get_u64().map_err(|_| Unreadable(field))
}

/// A slice of the value: it was read for this record alone, so nothing larger is kept alive.
fn bytes(value: &mut Bytes, length: usize, field: &'static str) -> Result<Bytes, Unreadable> {
    match length <= value.len() {
        true => Ok(value.split_to(length)),
        false => Err(Unreadable(field)),
    }
}

fn long_bytes(value: &mut Bytes, field: &'static str) -> Result<Bytes, Unreadable> {
    let length = value.try_get_u32().map_err(|_| Unreadable(field))?;
    let length = usize::try_from(length).map_err(|_| Unreadable(field))?;
    bytes(value, length, field)
}

/// The field that cannot be read. Never what it holds, since errors are logged (U19).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unreadable(&'static str);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the field `{}` cannot be read", self.0)
    }
}

impl Error for Unreadable {}
