//! How a record stands in Redis, and what the scripts answer.

use std::{error::Error, fmt, str::FromStr};

use bytes::Bytes;
use redis::Value;

use crate::{
    fingerprint::Fingerprint,
    key::push_hex,
    record::{Claimed, Entry, FencingToken, Lease, OwnerId, Payload, Record, State, Timestamp},
};

/// What a script did.
#[derive(Debug)]
pub(super) enum Reply {
    /// As asked, with what it has to tell.
    Done(Vec<Value>),
    /// Nothing: it found this, at that time.
    Kept(Option<Record>, Timestamp),
}

impl Reply {
    pub(super) fn read(value: Value) -> Result<Self, Unreadable> {
        let Value::Array(values) = value else {
            return Err(Unreadable("reply"));
        };
        let mut values = values.into_iter();
        match values.next() {
            Some(Value::Int(1)) => Ok(Self::Done(values.collect())),
            Some(Value::Int(0)) => {
                let now = Timestamp::from_micros(number(values.next(), "time")?);
                let record = match values.next() {
                    Some(Value::Array(fields)) => Some(record(fields)?),
                    Some(Value::Nil) => None,
                    _ => return Err(Unreadable("reply")),
                };
                Ok(Self::Kept(record, now))
            }
            _ => Err(Unreadable("reply")),
        }
    }
}

/// The fields of a record, in the order in which the scripts read them.
fn record(fields: Vec<Value>) -> Result<Record, Unreadable> {
    let mut fields = fields.into_iter();
    let mut next = || fields.next();
    if text(next(), "v")? != "1" {
        return Err(Unreadable("v"));
    }
    let state = match text(next(), "state")?.as_str() {
        "in_progress" => State::InProgress,
        "completed" => State::Completed,
        "failed" => State::Failed,
        _ => return Err(Unreadable("state")),
    };
    let algorithm = text(next(), "algorithm")?;
    let digest = text(next(), "fingerprint")?;
    let fingerprint = Fingerprint::from_str(&format!("{algorithm}:{digest}"))
        .map_err(|_| Unreadable("fingerprint"))?;
    Ok(Record {
        state,
        fingerprint,
        owner: owner(&text(next(), "owner")?)?,
        token: FencingToken::from_u64(number(next(), "token")?),
        attempt: number(next(), "attempt")?,
        entry: entry(next())?,
        created_at: Timestamp::from_micros(number(next(), "created_at")?),
        lease_until: Timestamp::from_micros(number(next(), "lease_until")?),
        expires_at: Timestamp::from_micros(number(next(), "expires_at")?),
        checkpoint: bytes(next(), "checkpoint")?,
        payload: match (next(), bytes(next(), "body")?) {
            (Some(Value::Nil), None) if state != State::Completed => None,
            (code, Some(bytes)) if state == State::Completed => Some(Payload {
                code: number(code, "code")?,
                bytes,
            }),
            _ => return Err(Unreadable("code or body")),
        },
    })
}

/// What a granted claim has to tell.
pub(super) fn claimed(
    told: Vec<Value>,
    owner: OwnerId,
    fingerprint: Fingerprint,
) -> Result<Claimed, Unreadable> {
    let mut told = told.into_iter();
    Ok(Claimed {
        lease: Lease {
            owner,
            token: FencingToken::from_u64(number(told.next(), "token")?),
            attempt: number(told.next(), "attempt")?,
            fingerprint,
        },
        entry: entry(told.next())?,
        checkpoint: bytes(told.next(), "checkpoint")?,
    })
}

/// The digest as it is kept.
pub(super) fn digest(fingerprint: &Fingerprint) -> String {
    let mut hex = String::with_capacity(64);
    push_hex(&mut hex, fingerprint.digest());
    hex
}

fn entry(value: Option<Value>) -> Result<Entry, Unreadable> {
    match text(value, "entry")?.as_str() {
        "first" => Ok(Entry::First),
        "retry" => Ok(Entry::Retry),
        "takeover" => Ok(Entry::Takeover),
        _ => Err(Unreadable("entry")),
    }
}

fn owner(hex: &str) -> Result<OwnerId, Unreadable> {
    let lower = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if hex.len() != 32 || !hex.bytes().all(lower) {
        return Err(Unreadable("owner"));
    }
    let id = u128::from_str_radix(hex, 16).map_err(|_| Unreadable("owner"))?;
    Ok(OwnerId::from_u128(id))
}

/// As the scripts write them: digits, and no zero in front.
fn number<N: FromStr>(value: Option<Value>, field: &'static str) -> Result<N, Unreadable> {
    let text = text(value, field)?;
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if plain && (text == "0" || !text.starts_with('0')) => Ok(number),
        _ => Err(Unreadable(field)),
    }
}

fn text(value: Option<Value>, field: &'static str) -> Result<String, Unreadable> {
    match value {
        Some(Value::BulkString(text)) => String::from_utf8(text).map_err(|_| Unreadable(field)),
        _ => Err(Unreadable(field)),
    }
}

fn bytes(value: Option<Value>, field: &'static str) -> Result<Option<Bytes>, Unreadable> {
    match value {
        Some(Value::BulkString(bytes)) => Ok(Some(Bytes::from(bytes))),
        Some(Value::Nil) => Ok(None),
        _ => Err(Unreadable(field)),
    }
}

/// The field that is missing or means nothing to this version. Never what it holds (U19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable(pub(super) &'static str);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot read: {}", self.0)
    }
}

impl Error for Unreadable {}
