//! What SQLite's errors mean to a store.

use sqlx::error::Error;

use crate::store::{contract::StoreError, transaction::NotCompleted};

pub(super) const NAME: &str = "sqlite";

/// The text of the error quotes no values (U19): SQLite's messages name tables and columns, and
/// sqlx's name types.
pub(super) fn store_error(error: Error) -> StoreError {
    match primary_code(&error) {
        Some(FULL | TOO_BIG) => StoreError::Full { store: NAME },
        Some(CORRUPT | NOT_A_DATABASE) => StoreError::corrupt(NAME, error),
        _ => StoreError::unavailable(NAME, error),
    }
}

/// The same within a transaction, which may have begun too early.
pub(super) fn not_completed(error: Error) -> NotCompleted {
    match code(&error) {
        Some(BUSY_SNAPSHOT) => NotCompleted::Conflict(error.into()),
        _ => NotCompleted::Store(store_error(error)),
    }
}

/// Whether another connection holds a lock.
pub(super) fn is_busy(error: &Error) -> bool {
    primary_code(error) == Some(BUSY)
}

/// Whether a commit that failed so is certain not to have happened. After an error of the disk it is
/// not.
pub(super) fn is_refusal(error: &Error) -> bool {
    matches!(primary_code(error), Some(BUSY | FULL | CONSTRAINT))
}

// https://www.sqlite.org/rescode.html
const BUSY: i32 = 5;
const BUSY_SNAPSHOT: i32 = 517;
const CORRUPT: i32 = 11;
const FULL: i32 = 13;
const CONSTRAINT: i32 = 19;
const TOO_BIG: i32 = 18;
const NOT_A_DATABASE: i32 = 26;

/// SQLite's code without the bits that extend it.
fn primary_code(error: &Error) -> Option<i32> {
    Some(code(error)? & 0xff)
}

fn code(error: &Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}
