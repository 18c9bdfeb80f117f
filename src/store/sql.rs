//! What the SQL stores share: names of tables, the columns of a key, the words for states, and how
//! a row is read.

use std::{borrow::Cow, error::Error, fmt};

use bytes::Bytes;
use sha2::{Digest, Sha256};
use sqlx::Database;
use sqlx_core::transaction::TransactionManager;

use crate::{
    fingerprint::Fingerprint,
    key::{StoreKey, push_hex},
    record::{Entry, FencingToken, OwnerId, Payload, Record, State, Timestamp},
    store::{contract::StoreError, transaction::NotCompleted},
};

/// The layout of a row. Another one is not read.
pub(crate) const LAYOUT: i16 = 1;

/// The table, unless told otherwise.
pub(crate) const DEFAULT_TABLE: &str = "idempotency_records";

/// The name of a table or a schema. It needs no escape between double quotes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Name(String);

impl Name {
    /// PostgreSQL cuts a name off after 63 bytes: this leaves room for the names of indices.
    const MAX_LEN: usize = 50;

    pub(crate) fn new(name: &str) -> Result<Self, InvalidName> {
        let reason = match name.as_bytes() {
            [] => "is empty",
            [b'0'..=b'9', ..] => "begins with a digit",
            long if long.len() > Self::MAX_LEN => "is longer than 50 bytes",
            bytes
                if !bytes
                    .iter()
                    .all(|b| b.is_ascii_alphanumeric() || *b == b'_') =>
            {
                "holds something else than ASCII letters, digits and `_`"
            }
            _ => return Ok(Self(name.to_owned())),
        };
        Err(InvalidName(reason))
    }

    /// A name of this crate's.
    pub(crate) fn known(name: &'static str) -> Self {
        Self(name.to_owned())
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// As an identifier of SQL: upper and lower case count.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0)
    }
}

/// The name of a table or schema was refused: it holds 1 to 50 ASCII letters, digits and `_`, and
/// does not begin with a digit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidName(&'static str);

impl fmt::Display for InvalidName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name {}", self.0)
    }
}

impl Error for InvalidName {}

/// The columns that a record is found by.
pub(crate) struct KeyColumns<'a> {
    pub(crate) prefix: Cow<'a, str>,
    pub(crate) scope: Cow<'a, str>,
    pub(crate) endpoint: Cow<'a, str>,
    pub(crate) key: Cow<'a, str>,
}

impl<'a> KeyColumns<'a> {
    pub(crate) fn of(key: &'a StoreKey) -> Self {
        let parts = key.parts();
        Self {
            prefix: column(parts.prefix),
            scope: column(parts.scope),
            endpoint: column(parts.endpoint),
            key: column(parts.key),
        }
    }
}

/// Four of these fit into a row of an index of PostgreSQL.
const LONGEST_COLUMN: usize = 512;

/// The part as it stands, where a text column and an index hold it; else `#` and its SHA-256. A part
/// that begins with `#` is hashed too, so that the two never meet.
fn column(part: &str) -> Cow<'_, str> {
    if part.len() <= LONGEST_COLUMN && !part.starts_with('#') && !part.contains('\0') {
        return Cow::Borrowed(part);
    }
    let mut hashed = String::with_capacity(65);
    hashed.push('#');
    push_hex(&mut hashed, &Sha256::digest(part));
    Cow::Owned(hashed)
}

pub(crate) const IN_PROGRESS: &str = "in_progress";
pub(crate) const COMPLETED: &str = "completed";
pub(crate) const FAILED: &str = "failed";

pub(crate) const FIRST: &str = "first";
pub(crate) const RETRY: &str = "retry";
pub(crate) const TAKEOVER: &str = "takeover";

/// A row as it was found: nothing in it is believed yet.
pub(crate) struct Row {
    pub(crate) version: i64,
    pub(crate) status: String,
    pub(crate) hash_algorithm: String,
    pub(crate) request_hash: Vec<u8>,
    pub(crate) owner: Vec<u8>,
    pub(crate) fencing_token: i64,
    pub(crate) attempt: i64,
    pub(crate) entry: String,
    pub(crate) checkpoint: Option<Vec<u8>>,
    pub(crate) response_code: Option<i64>,
    /// Nothing where the answer cannot be given again.
    pub(crate) response_body: Option<Vec<u8>>,
    pub(crate) created_at: Timestamp,
    pub(crate) lease_until: Timestamp,
    pub(crate) expires_at: Timestamp,
}

impl Row {
    /// The record, if this is one that this build knows.
    pub(crate) fn record(self) -> Result<Record, Unreadable> {
        if self.version != i64::from(LAYOUT) {
            return Err(Unreadable("version"));
        }
        let state = match self.status.as_str() {
            IN_PROGRESS => State::InProgress,
            COMPLETED => State::Completed,
            FAILED => State::Failed,
            _ => return Err(Unreadable("status")),
        };
        let entry = match self.entry.as_str() {
            FIRST => Entry::First,
            RETRY => Entry::Retry,
            TAKEOVER => Entry::Takeover,
            _ => return Err(Unreadable("entry")),
        };
        let digest = self.request_hash.try_into();
        let digest = digest.map_err(|_| Unreadable("request_hash"))?;
        let fingerprint = Fingerprint::from_parts(&self.hash_algorithm, digest);
        let owner = self.owner.try_into();
        let owner = u128::from_be_bytes(owner.map_err(|_| Unreadable("owner"))?);
        let token = u64::try_from(self.fencing_token);
        let attempt = u32::try_from(self.attempt)
            .ok()
            .filter(|attempt| *attempt > 0);
        let payload = match state {
            State::Completed => {
                let code = self.response_code.and_then(|code| u16::try_from(code).ok());
                Some(Payload {
                    code: code.ok_or(Unreadable("response_code"))?,
                    bytes: self.response_body.unwrap_or_default().into(),
                })
            }
            State::InProgress | State::Failed => None,
        };
        Ok(Record {
            state,
            fingerprint: fingerprint.map_err(|_| Unreadable("hash_algorithm"))?,
            owner: OwnerId::from_u128(owner),
            token: FencingToken::from_u64(token.map_err(|_| Unreadable("fencing_token"))?),
            attempt: attempt.ok_or(Unreadable("attempt"))?,
            entry,
            checkpoint: self.checkpoint.map(Bytes::from),
            payload,
            created_at: self.created_at,
            lease_until: self.lease_until,
            expires_at: self.expires_at,
        })
    }
}

/// The column that cannot be read. Never what it holds (U19).
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Unreadable(pub(crate) &'static str);

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the column {} holds what this build cannot read", self.0)
    }
}

impl Error for Unreadable {}

/// Refuses a transaction within another one, a savepoint: its commit writes nothing by itself.
pub(crate) fn whole<DB: Database>(
    store: &'static str,
    connection: &DB::Connection,
) -> Result<(), NotCompleted> {
    match DB::TransactionManager::get_transaction_depth(connection) {
        1 => Ok(()),
        _ => Err(NotCompleted::Store(StoreError::unavailable(
            store,
            "a savepoint cannot be committed by itself",
        ))),
    }
}

/// An owner as it is kept: 16 bytes, the greatest first.
pub(crate) fn owner_bytes(owner: OwnerId) -> [u8; 16] {
    owner.as_u128().to_be_bytes()
}

/// A token as it is kept. One beyond the greatest counts as that.
pub(crate) fn token_column(token: FencingToken) -> i64 {
    i64::try_from(token.as_u64()).unwrap_or(i64::MAX)
}

/// An answer's bytes as they are kept: nothing where it cannot be given again.
pub(crate) fn body_column(payload: &Payload) -> Option<&[u8]> {
    payload.is_replayable().then_some(&payload.bytes[..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name is nothing but a name, whatever quotes stand around it.
    #[test]
    fn names_are_checked() {
        for name in ["a", "_", "Records_2", "x".repeat(50).as_str()] {
            let quoted = Name::new(name).unwrap().to_string();
            assert_eq!(quoted, format!("\"{name}\""));
        }
        for name in [
            "",
            "1a",
            "a b",
            "a\"b",
            "a.b",
            "a;b",
            "a-b",
            "ä",
            "a\0",
            "a\n",
            "x".repeat(51).as_str(),
        ] {
            assert!(Name::new(name).is_err(), "{name:?}");
        }
        let long = Name::new(&"x".repeat(51)).unwrap_err();
        assert_eq!(long.to_string(), "the name is longer than 50 bytes");
    }

    /// S20, I11: ordinary parts stand as they are; the others are hashed, and none is another.
    #[test]
    fn s20_i11_columns_are_injective() {
        let long = "x".repeat(513);
        let longest = "x".repeat(512);
        for plain in ["", "order_123", "a:b/c%", "Ä\n'\"\\", longest.as_str()] {
            assert_eq!(column(plain), plain);
        }
        let mut seen = std::collections::HashSet::new();
        let hashed_long = column(&long).into_owned();
        for part in [
            "#",
            "##",
            "a\0",
            "\0",
            &long,
            &hashed_long,
            "x",
            "a",
            "#a",
            &longest,
        ] {
            let column = column(part).into_owned();
            assert!(!column.contains('\0') && column.len() <= 512);
            assert!(seen.insert(column), "{part:?}");
        }
        assert_eq!(hashed_long.len(), 65);
    }

    fn row() -> Row {
        Row {
            version: 1,
            status: COMPLETED.to_owned(),
            hash_algorithm: "t/1".to_owned(),
            request_hash: vec![7; 32],
            owner: vec![1; 16],
            fencing_token: 5,
            attempt: 2,
            entry: RETRY.to_owned(),
            checkpoint: None,
            response_code: Some(201),
            response_body: Some(b"answer".to_vec()),
            created_at: Timestamp::from_micros(1),
            lease_until: Timestamp::from_micros(2),
            expires_at: Timestamp::from_micros(3),
        }
    }

    /// U18: whatever cannot be read is named by its column, and nothing panics.
    #[test]
    fn u18_each_column_is_checked() {
        assert!(row().record().is_ok());
        type Spoil = fn(&mut Row);
        let spoilt: [(&str, Spoil); 15] = [
            ("version", |row| row.version = 2),
            ("version", |row| row.version = -1),
            ("status", |row| row.status.push('x')),
            ("status", |row| row.status.clear()),
            ("entry", |row| row.entry = "second".to_owned()),
            ("request_hash", |row| row.request_hash.push(0)),
            ("hash_algorithm", |row| row.hash_algorithm.clear()),
            ("hash_algorithm", |row| row.hash_algorithm = "x".repeat(17)),
            ("owner", |row| row.owner.push(0)),
            ("fencing_token", |row| row.fencing_token = -1),
            ("attempt", |row| row.attempt = 0),
            ("attempt", |row| row.attempt = i64::MAX),
            ("response_code", |row| row.response_code = None),
            ("response_code", |row| row.response_code = Some(-1)),
            ("response_code", |row| row.response_code = Some(65_536)),
        ];
        for (column, spoil) in spoilt {
            let mut row = row();
            spoil(&mut row);
            assert_eq!(row.record().unwrap_err(), Unreadable(column));
        }
    }

    /// P2: an answer that cannot be given again has no bytes in its row.
    #[test]
    fn p2_an_answer_without_bytes_is_not_replayable() {
        assert_eq!(body_column(&Payload::not_replayable(200)), None);
        let answer = Payload::new(200, Bytes::from_static(b"x"));
        assert_eq!(body_column(&answer), Some(&b"x"[..]));
        let row = Row {
            response_body: None,
            ..row()
        };
        let read = row.record().unwrap().payload.unwrap();
        assert_eq!(read, Payload::not_replayable(201));
    }
}
