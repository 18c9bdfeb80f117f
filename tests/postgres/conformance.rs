//! The conformance suite.

use std::future::ready;

use sqlx::{AssertSqlSafe, PgPool};
use tower_idempotency::{
    PostgresStore, Store, StoreKey,
    testing::{
        differential,
        store::{Corruption, Fixture},
    },
};

use crate::support::Own;

async fn fixture<S: Store>(wrap: impl Fn(PostgresStore) -> S) -> Fixture<S> {
    let own = Own::new(8).await;
    let (clock, table) = (own.store.clone(), own.table());
    let fixture = Fixture::new(wrap(own.store), move |by| {
        clock.advance_clock(by);
        ready(())
    });
    let pool = own.pool;
    fixture.with_corruption(move |key, how| damage(pool.clone(), table.clone(), key, how))
}

/// Makes a row unreadable.
async fn damage(pool: PgPool, table: String, key: StoreKey, how: Corruption) {
    let spoil = match how {
        Corruption::CutShort => "request_hash = substr(request_hash, 1, 31)",
        Corruption::UnknownVersion => "version = 2",
        _ => "status = 'unreadable-'",
    };
    let sql = format!("UPDATE {table} SET {spoil} WHERE idempotency_key = $1");
    let spoilt = sqlx::query(AssertSqlSafe(sql))
        .bind(key.parts().key)
        .execute(&pool);
    assert_eq!(spoilt.await.unwrap().rows_affected(), 1);
}

/// Random operations, against the machine.
#[tokio::test]
async fn it_agrees_with_the_machine() {
    differential::run(|| fixture(|store| store)).await;
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
