//! What the server answered: a row of a reply, its times, and its errors.

use std::{error::Error, fmt, time::Duration};

use sqlx::{
    Decode, Postgres, Row as _, Type, ValueRef as _,
    error::BoxDynError,
    postgres::{
        PgRow, PgTypeInfo, PgValueFormat, PgValueRef,
        types::{Oid, PgInterval},
    },
};

use crate::{
    record::{Record, Timestamp},
    store::{
        contract::StoreError,
        sql::{Row, Unreadable},
    },
};

pub(super) const NAME: &str = "PostgreSQL";

/// The row of a reply.
pub(super) struct Reply {
    /// Whether the record was changed.
    pub(super) done: bool,
    /// The server's time.
    pub(super) now: Timestamp,
    /// The record: as it was made, or, where nothing was changed, as it was seen.
    pub(super) record: Option<Record>,
}

impl Reply {
    pub(super) fn read(row: &PgRow) -> Result<Self, StoreError> {
        let done = row.try_get("done").map_err(refused)?;
        let Time(now) = row.try_get("now").map_err(refused)?;
        let found: Option<bool> = row.try_get("found").map_err(refused)?;
        let record = found.map(|_| record(row)).transpose();
        Ok(Self {
            done,
            now,
            record: record.map_err(|unreadable| StoreError::corrupt(NAME, unreadable))?,
        })
    }
}

fn record(row: &PgRow) -> Result<Record, Unreadable> {
    /// Neither a missing value nor one of another type is told with its contents.
    fn get<'r, T: Decode<'r, Postgres> + Type<Postgres>>(
        row: &'r PgRow,
        column: &'static str,
    ) -> Result<T, Unreadable> {
        row.try_get(column).map_err(|_| Unreadable(column))
    }
    let version: i16 = get(row, "version")?;
    let attempt: i32 = get(row, "attempt")?;
    let code: Option<i32> = get(row, "response_code")?;
    let time = |column| get(row, column).map(|Time(time)| time);
    Row {
        version: version.into(),
        status: get(row, "status")?,
        hash_algorithm: get(row, "hash_algorithm")?,
        request_hash: get(row, "request_hash")?,
        owner: get(row, "owner")?,
        fencing_token: get(row, "fencing_token")?,
        attempt: attempt.into(),
        entry: get(row, "entry")?,
        checkpoint: get(row, "checkpoint")?,
        response_code: code.map(i64::from),
        response_body: get(row, "response_body")?,
        created_at: time("created_at")?,
        lease_until: time("lease_until")?,
        expires_at: time("expires_at")?,
    }
    .record()
}

/// A `timestamptz`, to the microsecond. Before 1970 counts as 1970.
struct Time(Timestamp);

impl Type<Postgres> for Time {
    fn type_info() -> PgTypeInfo {
        const TIMESTAMPTZ: PgTypeInfo = PgTypeInfo::with_oid(Oid(1184));
        TIMESTAMPTZ
    }
}

impl Decode<'_, Postgres> for Time {
    fn decode(value: PgValueRef<'_>) -> Result<Self, BoxDynError> {
        /// From 1970 to 2000, where PostgreSQL begins to count.
        const EPOCH: i64 = 946_684_800_000_000;
        if value.is_null() || value.format() != PgValueFormat::Binary {
            return Err("no time".into());
        }
        let micros = i64::from_be_bytes(value.as_bytes()?.try_into()?);
        // The greatest and the least stand for `infinity` and `-infinity`.
        let micros = match micros {
            i64::MAX => u64::MAX,
            micros => u64::try_from(micros.saturating_add(EPOCH)).unwrap_or(0),
        };
        Ok(Self(Timestamp::from_micros(micros)))
    }
}

/// A duration as PostgreSQL adds it to a time. The calendar ends in the year 294 276: one of more
/// than 90 000 years counts as that, of which three may follow each other.
pub(super) fn interval(duration: Duration) -> PgInterval {
    const LONGEST: u64 = 90_000 * 365 * 24 * 3600 * 1_000_000;
    let micros = u64::try_from(duration.as_micros()).unwrap_or(LONGEST);
    PgInterval {
        months: 0,
        days: 0,
        microseconds: micros.min(LONGEST) as i64,
    }
}

/// Whether the same statement may well succeed if it is sent again: another transaction came
/// between, under an isolation level that minds.
pub(super) fn is_conflict(error: &sqlx::Error) -> bool {
    const SERIALIZATION_FAILURE: &str = "40001";
    const DEADLOCK_DETECTED: &str = "40P01";
    let code = error.as_database_error().and_then(|error| error.code());
    code.is_some_and(|code| code == SERIALIZATION_FAILURE || code == DEADLOCK_DETECTED)
}

/// Why a statement was not answered as it should.
pub(super) fn refused(error: sqlx::Error) -> StoreError {
    const DISK_FULL: &str = "53100";
    match error.as_database_error().and_then(|said| said.code()) {
        Some(code) if code == DISK_FULL => StoreError::Full { store: NAME },
        _ => StoreError::unavailable(NAME, without_detail(error)),
    }
}

/// What may be logged of an error.
pub(super) fn without_detail(error: sqlx::Error) -> Box<dyn Error + Send + Sync> {
    match error.as_database_error() {
        None => error.into(),
        Some(said) => Box::new(Said {
            code: said.code().map(|code| code.into_owned()),
            message: said.message().to_owned(),
        }),
    }
}

/// An error of the server: the code and the primary message. Its detail may quote a row (U19).
#[derive(Debug)]
struct Said {
    code: Option<String>,
    message: String,
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, "{} (SQLSTATE {code})", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl Error for Said {}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three of the longest durations after now are still in the calendar.
    #[test]
    fn the_longest_durations_fit() {
        let longest = interval(Duration::MAX);
        assert_eq!(longest, interval(Duration::from_micros(u64::MAX)));
        let years = longest.microseconds / (365 * 24 * 3600 * 1_000_000);
        assert!(3 * years + 2_100 < 294_276);
        assert_eq!(interval(Duration::from_nanos(1_999)).microseconds, 1);
    }
}
