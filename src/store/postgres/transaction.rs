//! A transaction of PostgreSQL that takes a record along (P7).

use std::{error::Error, time::Duration};

use sqlx::{PgConnection, Postgres, Transaction};

use super::{
    PostgresStore,
    reply::{NAME, without_detail},
};
use crate::{
    key::StoreKey,
    record::{Lease, Payload},
    store::{
        sql::whole,
        transaction::{DatabaseTransaction, NotCommitted, NotCompleted},
    },
};

#[cfg_attr(docsrs, doc(cfg(feature = "postgres")))]
impl DatabaseTransaction for Transaction<'_, Postgres> {
    type Store = PostgresStore;
    type Connection = PgConnection;

    fn connection(&mut self) -> &mut PgConnection {
        self
    }

    fn connection_ref(&self) -> &PgConnection {
        self
    }

    async fn complete(
        &mut self,
        store: &PostgresStore,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), NotCompleted> {
        whole::<Postgres>(NAME, self)?;
        store.complete_in(self, key, lease, payload, ttl).await
    }

    async fn commit(self) -> Result<(), NotCommitted> {
        let committed = Transaction::commit(self).await;
        committed.map_err(|error| NotCommitted {
            certain: is_certain(&error),
            source: without_detail(error),
        })
    }

    async fn rollback(self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let rolled_back = Transaction::rollback(self).await;
        rolled_back.map_err(without_detail)
    }
}

/// Whether the server says that it has not committed: for a constraint, a trigger, or another
/// transaction. A server that is shut down while it waits for its replicas answers with an error,
/// too, and has committed.
fn is_certain(error: &sqlx::Error) -> bool {
    const COMPLETION_UNKNOWN: &str = "40003";
    let said = error.as_database_error().and_then(|said| said.code());
    said.is_some_and(|code| {
        code != COMPLETION_UNKNOWN
            && ["23", "40", "44", "P0"]
                .iter()
                .any(|class| code.starts_with(class))
    })
}
