//! [`DatabaseTransaction`]: a transaction in which a record is completed together with rows of the
//! handler's (P7).

use std::{error::Error, fmt, future::Future, time::Duration};

use super::{Store, StoreError};
use crate::{
    key::StoreKey,
    record::{Lease, Payload},
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
    /// [`StoreError::Superseded`]: another owner holds or has finished it. [`StoreError::Gone`]: it
    /// is absent, or this owner has finished it. Any other: it could not be completed.
    fn complete(
        &mut self,
        store: &Self::Store,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

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
