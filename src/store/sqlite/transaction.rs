//! A transaction of SQLite that takes a record along (P7).

use std::{error::Error, time::Duration};

use sqlx::{Sqlite, SqliteConnection, Transaction};

use super::{
    SqliteStore,
    error::{NAME, is_refusal},
};
use crate::{
    key::StoreKey,
    record::{Lease, Payload},
    store::{
        sql::whole,
        transaction::{DatabaseTransaction, NotCommitted, NotCompleted},
    },
};

#[cfg_attr(docsrs, doc(cfg(feature = "sqlite")))]
impl DatabaseTransaction for Transaction<'_, Sqlite> {
    type Store = SqliteStore;
    type Connection = SqliteConnection;

    fn connection(&mut self) -> &mut SqliteConnection {
        self
    }

    fn connection_ref(&self) -> &SqliteConnection {
        self
    }

    async fn complete(
        &mut self,
        store: &SqliteStore,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), NotCompleted> {
        whole::<Sqlite>(NAME, self)?;
        store.complete_in(self, key, lease, payload, ttl).await
    }

    async fn commit(self) -> Result<(), NotCommitted> {
        let committed = Transaction::commit(self).await;
        committed.map_err(|error| NotCommitted {
            certain: is_refusal(&error),
            source: error.into(),
        })
    }

    async fn rollback(self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(Transaction::rollback(self).await?)
    }

    fn committed(store: &SqliteStore, key: &StoreKey) {
        store.wake(key);
    }
}
