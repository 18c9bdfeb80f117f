//! A record as a row, and back.

use std::sync::Arc;

use sqlx::{
    AssertSqlSafe, Decode, Row as _, Sqlite, Type,
    query::Query,
    sqlite::{SqliteArguments, SqliteRow},
};

use super::error::NAME;
use crate::{
    key::StoreKey,
    record::{Entry, FencingToken, Record, State, Timestamp},
    store::{
        contract::StoreError,
        sql::{self, KeyColumns, LAYOUT, Row, Unreadable, body_column, owner_bytes, token_column},
    },
};

/// A statement with its parameters, which holds on to nothing.
pub(super) type Statement = Query<'static, Sqlite, SqliteArguments>;

/// Parameters 1 to 4: the key.
pub(super) fn with_key(sql: &Arc<str>, key: &StoreKey) -> Statement {
    let columns = KeyColumns::of(key);
    sqlx::query(AssertSqlSafe(Arc::clone(sql)))
        .bind(columns.prefix.into_owned())
        .bind(columns.scope.into_owned())
        .bind(columns.endpoint.into_owned())
        .bind(columns.key.into_owned())
}

/// Parameters 5 to 11: what the record was when it was read.
pub(super) fn with_read(statement: Statement, record: &Record) -> Statement {
    statement
        .bind(status(record.state))
        .bind(owner_bytes(record.owner).to_vec())
        .bind(token_column(record.token))
        .bind(entry(record.entry))
        .bind(record.checkpoint.as_ref().map(|bytes| bytes.to_vec()))
        .bind(micros(record.lease_until))
        .bind(micros(record.expires_at))
}

/// The next 14 parameters: the record as it is to be.
pub(super) fn with_record(statement: Statement, record: &Record) -> Statement {
    let payload = record.payload.as_ref();
    statement
        .bind(status(record.state))
        .bind(record.fingerprint.digest().to_vec())
        .bind(record.fingerprint.algorithm().to_owned())
        .bind(owner_bytes(record.owner).to_vec())
        .bind(token_column(record.token))
        .bind(i64::from(record.attempt))
        .bind(entry(record.entry))
        .bind(record.checkpoint.as_ref().map(|bytes| bytes.to_vec()))
        .bind(payload.map(|payload| payload.code))
        .bind(payload.and_then(body_column).map(<[u8]>::to_vec))
        .bind(micros(record.created_at))
        .bind(micros(record.lease_until))
        .bind(micros(record.expires_at))
        .bind(LAYOUT)
}

/// A time beyond SQL's greatest integer, 292 000 years from now, counts as that.
fn micros(time: Timestamp) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

fn status(state: State) -> &'static str {
    match state {
        State::InProgress => sql::IN_PROGRESS,
        State::Completed => sql::COMPLETED,
        State::Failed => sql::FAILED,
    }
}

fn entry(entry: Entry) -> &'static str {
    match entry {
        Entry::First => sql::FIRST,
        Entry::Retry => sql::RETRY,
        Entry::Takeover => sql::TAKEOVER,
    }
}

/// What a read found.
pub(super) struct Found {
    /// The record, expired or not.
    pub(super) record: Option<Record>,
    /// The greatest token of all records that were removed.
    pub(super) greatest: FencingToken,
}

impl Found {
    /// # Errors
    ///
    /// [`StoreError::Corrupt`] where the row is not a record of this layout. The source names the
    /// column, and never what is in it (U19).
    pub(super) fn parse(row: &SqliteRow) -> Result<Self, StoreError> {
        let parse = || {
            let greatest = unsigned(row, "greatest")?;
            let record = match get(row, "version")? {
                None => None,
                Some(version) => Some(found(row, version)?.record()?),
            };
            Ok(Self {
                record,
                greatest: FencingToken::from_u64(greatest),
            })
        };
        parse().map_err(|unreadable: Unreadable| StoreError::corrupt(NAME, unreadable))
    }
}

fn found(row: &SqliteRow, version: i64) -> Result<Row, Unreadable> {
    let time = |column| unsigned(row, column).map(Timestamp::from_micros);
    Ok(Row {
        version,
        status: get(row, "status")?,
        hash_algorithm: get(row, "hash_algorithm")?,
        request_hash: get(row, "request_hash")?,
        owner: get(row, "owner")?,
        fencing_token: get(row, "fencing_token")?,
        attempt: get(row, "attempt")?,
        entry: get(row, "entry")?,
        checkpoint: get(row, "checkpoint")?,
        response_code: get(row, "response_code")?,
        response_body: get(row, "response_body")?,
        created_at: time("created_at")?,
        lease_until: time("lease_until")?,
        expires_at: time("expires_at")?,
    })
}

fn get<'r, T>(row: &'r SqliteRow, column: &'static str) -> Result<T, Unreadable>
where
    T: Decode<'r, Sqlite> + Type<Sqlite>,
{
    row.try_get(column).map_err(|_| Unreadable(column))
}

fn unsigned(row: &SqliteRow, column: &'static str) -> Result<u64, Unreadable> {
    u64::try_from(get::<i64>(row, column)?).map_err(|_| Unreadable(column))
}
