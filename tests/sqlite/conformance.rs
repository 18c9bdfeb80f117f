//! The suite that every store passes.

use std::{
    future::ready,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use tower_idempotency::{
    Claim, ClaimRequest, FencingToken, Lease, Payload, Snapshot, SqliteStore, Store, StoreError,
    StoreKey,
    testing::{
        differential,
        store::{Corruption, Fixture},
    },
};

use crate::support::File;

async fn fixture<S: Store>(wrap: impl Fn(SqliteStore) -> S) -> Fixture<S> {
    let file = File::new();
    let store = file.store().await;
    let (clock, rows) = (store.clone(), store.clone());
    let fixture = Fixture::new(wrap(store), move |by| {
        clock.advance_clock(by);
        ready(())
    });
    let fixture = fixture.with_corruption(move |key, how| damage(rows.clone(), key, how));
    fixture.with_guard(file)
}

/// Makes a row unreadable.
async fn damage(store: SqliteStore, key: StoreKey, how: Corruption) {
    let spoil = match how {
        Corruption::CutShort => "request_hash = substr(request_hash, 1, 31)",
        Corruption::UnknownVersion => "version = 2",
        _ => "status = 'unreadable-'",
    };
    let sql = format!("UPDATE idempotency_records SET {spoil} WHERE idempotency_key = ?");
    let spoilt = sqlx::query(sqlx::AssertSqlSafe(sql))
        .bind(key.parts().key)
        .execute(store.pool())
        .await
        .unwrap();
    assert_eq!(spoilt.rows_affected(), 1);
}

/// Random operations, against the machine.
#[tokio::test]
async fn it_agrees_with_the_machine() {
    differential::run(|| fixture(|store| store)).await;
    differential::run(several).await;
}

mod bare {
    tower_idempotency::store_conformance!(super::fixture(|store| store).await);
}

mod boxed {
    use tower_idempotency::Store;
    tower_idempotency::store_conformance!(
        super::fixture(|store| Box::new(store) as Box<dyn Store>).await
    );
}

mod shared {
    use {std::sync::Arc, tower_idempotency::Store};
    tower_idempotency::store_conformance!(
        super::fixture(|store| Arc::new(store) as Arc<dyn Store>).await
    );
}

mod on_many_threads {
    tower_idempotency::store_conformance!(
        super::fixture(|store| store).await;
        flavor = "multi_thread", worker_threads = 4
    );
}

/// S14: several pools on one file, as several processes have them: each call is another's.
mod on_several_pools {
    tower_idempotency::store_conformance!(
        super::several().await;
        flavor = "multi_thread", worker_threads = 4
    );
}

mod in_memory {
    tower_idempotency::store_conformance!(super::in_memory().await);
}

/// One connection is enough: no operation takes a second one while it holds the first.
async fn in_memory() -> Fixture<SqliteStore> {
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None);
    let pool = pool.connect_with(SqliteConnectOptions::new()).await;
    let store = SqliteStore::new(pool.unwrap());
    store.migrate().await.unwrap();
    let clock = store.clone();
    let rows = store.clone();
    let fixture = Fixture::new(store, move |by| {
        clock.advance_clock(by);
        ready(())
    });
    fixture.with_corruption(move |key, how| damage(rows.clone(), key, how))
}

async fn several() -> Fixture<Several> {
    let file = File::new();
    let mut stores = Vec::new();
    for _ in 0..3 {
        stores.push(file.store().await);
    }
    let (clocks, rows) = (stores.clone(), stores[0].clone());
    let several = Several {
        stores,
        turn: AtomicUsize::new(0),
    };
    let fixture = Fixture::new(several, move |by: Duration| {
        clocks.iter().for_each(|clock| clock.advance_clock(by));
        ready(())
    });
    let fixture = fixture.with_corruption(move |key, how| damage(rows.clone(), key, how));
    fixture.with_guard(file)
}

struct Several {
    stores: Vec<SqliteStore>,
    turn: AtomicUsize,
}

impl Several {
    fn next(&self) -> &SqliteStore {
        &self.stores[self.turn.fetch_add(1, SeqCst) % self.stores.len()]
    }
}

#[async_trait]
impl Store for Several {
    async fn claim(&self, key: &StoreKey, request: &ClaimRequest) -> Result<Claim, StoreError> {
        self.next().claim(key, request).await
    }

    async fn renew(
        &self,
        key: &StoreKey,
        lease: &Lease,
        lease_for: Duration,
        ttl: Duration,
        checkpoint: Option<Bytes>,
    ) -> Result<(), StoreError> {
        let store = self.next();
        store.renew(key, lease, lease_for, ttl, checkpoint).await
    }

    async fn complete(
        &self,
        key: &StoreKey,
        lease: &Lease,
        payload: &Payload,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.next().complete(key, lease, payload, ttl).await
    }

    async fn fail(&self, key: &StoreKey, lease: &Lease, ttl: Duration) -> Result<(), StoreError> {
        self.next().fail(key, lease, ttl).await
    }

    async fn release(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.next().release(key, lease, ttl).await
    }

    async fn give_back(
        &self,
        key: &StoreKey,
        lease: &Lease,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        self.next().give_back(key, lease, ttl).await
    }

    async fn get(&self, key: &StoreKey) -> Result<Option<Snapshot>, StoreError> {
        self.next().get(key).await
    }

    async fn forget(&self, key: &StoreKey) -> Result<bool, StoreError> {
        self.next().forget(key).await
    }

    async fn wait(
        &self,
        key: &StoreKey,
        token: FencingToken,
    ) -> Result<Option<Snapshot>, StoreError> {
        self.next().wait(key, token).await
    }
}
