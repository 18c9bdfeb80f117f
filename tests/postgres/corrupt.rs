//! Rows that cannot be read.

use std::fmt::Debug;

use tower_idempotency::store::{DatabaseTransaction, NotCompleted};
use tower_idempotency::{Store, StoreError};

use crate::support::{LEASE, Own, TTL, answer, claimed, key, request};

fn corrupt<T: Debug>(spoilt: &str, result: Result<T, StoreError>) {
    match result {
        Err(StoreError::Corrupt { source, .. }) => {
            let told = source.to_string();
            let column = spoilt.split_whitespace().next().unwrap();
            assert!(told.contains(column), "{spoilt}: {told}");
        }
        other => panic!("{spoilt}: {other:?}"),
    }
}

/// U18, U19: each operation says that the row cannot be read, by the name of the column, changes
/// nothing, and takes nothing for absent; `forget` removes the row.
#[tokio::test]
async fn u18_u19_each_operation_tells_of_a_row_it_cannot_read() {
    let own = Own::new(1).await;
    let (store, key) = (&own.store, &key("secret"));
    for column in [
        "version",
        "status",
        "owner",
        "entry",
        "created_at",
        "lease_until",
        "expires_at",
    ] {
        let drop = format!("ALTER TABLE {{t}} ALTER {column} DROP NOT NULL");
        own.run(&drop).await;
    }
    let spoilt = [
        "version = 2",
        "version = NULL",
        "status = 'paused'",
        "status = NULL",
        "entry = ''",
        "entry = NULL",
        "hash_algorithm = ''",
        "hash_algorithm = 'two words'",
        "hash_algorithm = 'seventeen-letters'",
        "hash_algorithm = E't/1\\n'",
        "request_hash = '\\x00'",
        "owner = '\\x'",
        "owner = NULL",
        "fencing_token = -1",
        "attempt = 0",
        "attempt = -1",
        "created_at = NULL",
        "lease_until = NULL",
        "expires_at = NULL",
        "response_code = NULL, status = 'completed'",
        "response_code = -1, status = 'completed'",
        "response_code = 65536, status = 'completed'",
    ];
    // Whatever each operation might otherwise change.
    let states = [
        "status = 'in_progress'",
        "status = 'in_progress', lease_until = '-infinity'",
        "status = 'in_progress', expires_at = '-infinity'",
        "status = 'failed'",
        "status = 'completed', response_code = 200",
    ];
    for spoilt in spoilt {
        for state in states {
            let lease = claimed(store, key).await.lease;
            own.run(&format!("UPDATE {{t}} SET {state}")).await;
            own.run(&format!("UPDATE {{t}} SET {spoilt}")).await;
            let row = async || -> String {
                let row = format!("SELECT concat(ctid, r) FROM {} r", own.table());
                let row = sqlx::query_scalar(sqlx::AssertSqlSafe(row)).fetch_one(&own.pool);
                row.await.unwrap()
            };
            let before = row().await;
            corrupt(spoilt, store.claim(key, &request()).await);
            corrupt(spoilt, store.get(key).await);
            corrupt(spoilt, store.wait(key, lease.token).await);
            corrupt(spoilt, store.renew(key, &lease, LEASE, TTL, None).await);
            corrupt(spoilt, store.complete(key, &lease, &answer(), TTL).await);
            corrupt(spoilt, store.fail(key, &lease, TTL).await);
            corrupt(spoilt, store.release(key, &lease, TTL).await);
            corrupt(spoilt, store.give_back(key, &lease, TTL).await);
            let mut transaction = own.pool.begin().await.unwrap();
            let answer = answer();
            let inside = transaction.complete(store, key, &lease, &answer, TTL);
            match inside.await {
                Err(NotCompleted::Store(error)) => corrupt::<()>(spoilt, Err(error)),
                other => panic!("{spoilt}: {other:?}"),
            }
            transaction.rollback().await.unwrap();
            assert_eq!(row().await, before, "{spoilt}");
            // Whether it was live is not always known.
            let _ = store.forget(key).await.unwrap();
            assert_eq!(store.get(key).await.unwrap(), None, "{spoilt}");
        }
    }
}

/// U18: a time that never ends is one.
#[tokio::test]
async fn u18_infinity_is_a_time() {
    let own = Own::new(1).await;
    let lease = claimed(&own.store, &key("k")).await.lease;
    own.run("UPDATE {t} SET expires_at = 'infinity', lease_until = 'infinity'")
        .await;
    let found = own.store.get(&key("k")).await.unwrap().unwrap();
    assert_eq!(found.record.expires_at.as_micros(), u64::MAX);
    own.store
        .renew(&key("k"), &lease, LEASE, TTL, None)
        .await
        .unwrap();
    own.run("UPDATE {t} SET expires_at = '-infinity'").await;
    assert_eq!(own.store.get(&key("k")).await.unwrap(), None);
}
