//! [`DatabaseTransaction`]: a transaction in which a record is completed together with rows of the
//! handler's (P7).

use std::{error::Error, fmt, future::Future, time::Duration};

use super::{Store, StoreError};
use crate::{
    key::StoreKey,
    machine,
    record::{Lease, Payload, Record, State, Timestamp},
};

type BoxError = Box<dyn Error + Send + Sync>;

/// A transaction of a database that also keeps records: for
/// [`Execution::transaction`](crate::Execution::transaction).
///
/// `sqlx::Transaction<'_, Postgres>` and `sqlx::Transaction<'_, Sqlite>` are such (features
/// `postgres`, `sqlite`). Implement it for another library's transaction where you have a store of
/// your own: the store says which it is with [`Store::transactional`].
///
/// # Contract
///
/// A transaction that is dropped is rolled back: at once, or before its connection is used again.
/// [`complete`](Self::complete) and [`commit`](Self::commit) may be dropped before their end. What a
/// dropped `complete` has changed goes with the transaction; a dropped `commit` has committed or
/// rolled back, as a whole.
///
/// A savepoint is none, since its commit is not the last word: [`complete`](Self::complete) refuses it.
pub trait DatabaseTransaction: Send + Sized {
    /// The store whose records this transaction can reach.
    type Store: Store;

    /// What the handler runs its statements on.
    type Connection;

    /// The connection.
    fn connection(&mut self) -> &mut Self::Connection;

    /// The connection.
    fn connection_ref(&self) -> &Self::Connection;

    /// Completes the record as a part of this transaction.
    ///
    /// Unlike [`Store::complete`] it must find the record: live, in progress, and under this owner;
    /// that its lease has ended does not matter. Otherwise it changes nothing: what the handler
    /// wrote would be written twice where another execution completed the record, or where this
    /// one did already. Until the end of the transaction nobody else can change the record.
    ///
    /// # Errors
    ///
    /// [`NotCompleted`]: the transaction is rolled back then.
    fn complete(
        &mut self,
        store: &Self::Store,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> impl Future<Output = Result<(), NotCompleted>> + Send;

    /// Commits.
    ///
    /// # Errors
    ///
    /// [`NotCommitted`] says whether it is certain that nothing was written.
    fn commit(self) -> impl Future<Output = Result<(), NotCommitted>> + Send;

    /// Rolls back.
    ///
    /// # Errors
    ///
    /// The database's. Nothing is written all the same.
    fn rollback(self) -> impl Future<Output = Result<(), BoxError>> + Send;

    /// Called after the commit: for a store that could not tell those who wait in this process
    /// before. Does nothing by default.
    fn committed(store: &Self::Store, key: &StoreKey) {
        let _ = (store, key);
    }
}

/// Why a record was not completed inside a transaction. Nothing was changed, and the transaction is
/// to be rolled back.
#[derive(Debug)]
#[non_exhaustive]
pub enum NotCompleted {
    /// Another owner holds or has finished the record.
    Superseded,
    /// This owner has completed the record already.
    Completed,
    /// This owner has ended the attempt as failed.
    Failed,
    /// There is no record: it expired, was released or forgotten, or the store lost it.
    Gone,
    /// Another transaction changed the record after this one began, under an isolation level that
    /// minds. The transaction may be run anew.
    Conflict(Box<dyn Error + Send + Sync>),
    /// The store could not do it.
    Store(StoreError),
}

impl NotCompleted {
    /// The reason, by the record that was found and the store's time; none where nothing speaks
    /// against completing it.
    #[must_use]
    pub fn reason(record: Option<&Record>, now: Timestamp, lease: &Lease) -> Option<Self> {
        let Some(found) = machine::get(record, now) else {
            return Some(Self::Gone);
        };
        let record = found.record;
        if record.owner != lease.owner {
            return Some(Self::Superseded);
        }
        match record.state {
            State::InProgress => None,
            State::Completed => Some(Self::Completed),
            State::Failed => Some(Self::Failed),
        }
    }
}

impl fmt::Display for NotCompleted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Superseded => StoreError::Superseded.fmt(f),
            Self::Completed => f.write_str("this owner has completed the record already"),
            Self::Failed => f.write_str("this owner has ended the attempt as failed"),
            Self::Gone => StoreError::Gone.fmt(f),
            Self::Conflict(_) => f.write_str("another transaction came between"),
            Self::Store(error) => error.fmt(f),
        }
    }
}

impl Error for NotCompleted {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Conflict(source) => Some(&**source),
            Self::Store(error) => error.source(),
            Self::Superseded | Self::Completed | Self::Failed | Self::Gone => None,
        }
    }
}

/// A commit that did not succeed, as far as is known.
#[derive(Debug)]
pub struct NotCommitted {
    /// Whether it is certain that nothing was written: the database said no. It is not where the
    /// connection was lost before the answer.
    pub certain: bool,
    /// What the database, or the connection, said.
    pub source: BoxError,
}

impl fmt::Display for NotCommitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.certain {
            true => "the database refused to commit",
            false => "it is not known whether the transaction was committed",
        })
    }
}

impl Error for NotCommitted {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}
