//! Rows, files and disks that are not as they should be.

use std::{error::Error, fs, time::Duration};

use sqlx::{AssertSqlSafe, Executor, SqlitePool, sqlite::SqlitePoolOptions};
use tower_idempotency::store::{DatabaseTransaction, NotCompleted};
use tower_idempotency::{Claim, SqliteStore, Store, StoreError};

use crate::support::*;

/// Every operation that has to read the record.
async fn all_say_corrupt(store: &SqliteStore, name: &str) {
    let (key, payload) = (key(name), answer("x"));
    let lease = claim(store, "another").await;
    is_corrupt(store.claim(&key, &request()).await);
    is_corrupt(store.renew(&key, &lease, LEASE, TTL, None).await);
    is_corrupt(store.complete(&key, &lease, &payload, TTL).await);
    is_corrupt(store.fail(&key, &lease, TTL).await);
    is_corrupt(store.release(&key, &lease, TTL).await);
    is_corrupt(store.give_back(&key, &lease, TTL).await);
    is_corrupt(store.get(&key).await);
    is_corrupt(store.wait(&key, lease.token).await);
    let mut transaction = store.pool().begin().await.unwrap();
    let refused = transaction.complete(store, &key, &lease, &payload, TTL);
    assert!(matches!(
        refused.await,
        Err(NotCompleted::Store(StoreError::Corrupt { .. }))
    ));
    drop(transaction);
    assert!(store.forget(&self::key("another")).await.unwrap());
}

/// U18: a row that cannot be read is told of by every operation, changed by none, and removed by
/// `forget`.
#[tokio::test]
async fn u18_unreadable_rows_are_told_of() {
    let file = File::new();
    let store = file.store().await;
    for spoil in [
        "status = 'done'",
        "status = ''",
        "request_hash = x'00'",
        "request_hash = CAST('not thirty-two bytes' AS BLOB)",
        "hash_algorithm = ''",
        "hash_algorithm = 'a:b'",
        "hash_algorithm = CAST(x'ff' AS TEXT)",
        "owner = x''",
        "fencing_token = -1",
        "attempt = 0",
        "attempt = 4294967296",
        "entry = 'second'",
        "response_code = NULL",
        "response_code = 65536",
        "created_at = -1",
        "lease_until = -1",
        "expires_at = -1",
        "version = 2",
        "version = 0",
        // Also where it has expired.
        "expires_at = 5, status = 'done'",
    ] {
        complete(&store, "k", "answer").await;
        let spoilt = format!("UPDATE idempotency_records SET {spoil}");
        store.pool().execute(AssertSqlSafe(spoilt)).await.unwrap();
        let row = async || -> Vec<u8> {
            let row = "SELECT CAST(status || hex(request_hash) || hex(hash_algorithm) || \
                       hex(owner) || fencing_token || attempt || entry || \
                       ifnull(response_code, '-') || hex(response_body) || created_at || \
                       lease_until || expires_at || version AS BLOB) \
                       FROM idempotency_records WHERE idempotency_key = 'k'";
            sqlx::query_scalar(row)
                .fetch_one(store.pool())
                .await
                .unwrap()
        };
        if spoil.starts_with("expires_at") {
            // The next new record would remove it.
            is_corrupt(store.get(&key("k")).await);
            is_corrupt(store.claim(&key("k"), &request()).await);
        } else {
            let before = row().await;
            all_say_corrupt(&store, "k").await;
            assert_eq!(row().await, before, "{spoil}");
        }
        store.forget(&key("k")).await.unwrap();
        claim(&store, "k").await;
        assert!(store.forget(&key("k")).await.unwrap(), "{spoil}");
    }
}

/// U19: the source of an error says what is wrong, and nothing of keys and answers.
#[tokio::test]
async fn u19_errors_name_neither_keys_nor_answers() {
    let file = File::new();
    let store = file.impatient(Duration::from_millis(10), 5).await;
    let mut errors = Vec::new();
    complete(&store, "secret", "secret").await;
    for spoil in ["status = 'secret'", "hash_algorithm = 'secret:'"] {
        let spoilt = format!("UPDATE idempotency_records SET {spoil}");
        store.pool().execute(AssertSqlSafe(spoilt)).await.unwrap();
        errors.push(store.get(&key("secret")).await.unwrap_err());
    }
    let mut other = store.pool().begin_with("BEGIN IMMEDIATE").await.unwrap();
    errors.push(store.claim(&key("secret 2"), &request()).await.unwrap_err());
    other
        .execute("DROP TABLE idempotency_records")
        .await
        .unwrap();
    other.commit().await.unwrap();
    errors.push(store.claim(&key("secret 2"), &request()).await.unwrap_err());
    let mut told = Vec::new();
    for error in &errors {
        let source = error.source().unwrap();
        told.push(format!("{error} {error:?} {source} {source:?}"));
    }
    assert!(told[0].contains("status"), "{told:?}");
    assert!(told[2].contains("locked"), "{told:?}");
    assert!(told[3].contains("no such table"), "{told:?}");
    assert!(!told.concat().contains("secret"), "{told:?}");
}

/// P2, P9: a full disk is told as such; what is recorded is replayed all the same, and when there
/// is room again it goes on.
#[tokio::test]
async fn p2_p9_a_full_disk() {
    let file = File::new();
    let pool = SqlitePoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None);
    let pool = pool.connect_with(file.options()).await.unwrap();
    let store = SqliteStore::new(pool);
    store.migrate().await.unwrap();
    complete(&store, "done", "answer").await;
    let lease = claim(&store, "running").await;
    // As SQLite tells of a disk without room, for the next page that it needs.
    let pages = |max: u32| AssertSqlSafe(format!("PRAGMA max_page_count = {max}"));
    store.pool().execute(pages(1)).await.unwrap();
    let large = answer(vec![7; 100_000]);
    is_full(store.complete(&key("running"), &lease, &large, TTL).await);
    let found = store.get(&key("running")).await.unwrap().unwrap();
    assert_eq!(found.record.payload, None);
    let mut refused = 0;
    for n in 0..200 {
        match store.claim(&key(n), &request()).await {
            Ok(Claim::Claimed(_)) => {}
            other => {
                is_full(other);
                refused += 1;
            }
        }
    }
    assert!(refused > 100, "{refused}");
    let replay = store.claim(&key("done"), &request()).await.unwrap();
    assert_eq!(replay, Claim::Completed(answer("answer")));
    store.pool().execute(pages(100_000)).await.unwrap();
    store
        .complete(&key("running"), &lease, &large, TTL)
        .await
        .unwrap();
}

/// What is no database, or none any more, is told as such, and nothing panics.
#[tokio::test]
async fn u18_a_file_that_is_no_database() {
    let file = File::new();
    fs::write(file.path(), "This is a text, and a long one. ".repeat(1000)).unwrap();
    is_corrupt(SqliteStore::open(file.path()).await);
    let folder = file.path().join("there is no such folder").join("x.db");
    is_unavailable(SqliteStore::open(folder).await);

    let file = File::new();
    let store = file.store().await;
    for n in 0..100 {
        complete(&store, n, &"x".repeat(500)).await;
    }
    store
        .pool()
        .execute("PRAGMA wal_checkpoint(TRUNCATE)")
        .await
        .unwrap();
    store.pool().close().await;
    let mut bytes = fs::read(file.path()).unwrap();
    // All but the first page, which holds the schema.
    bytes[4096..].fill(0xa5);
    fs::write(file.path(), bytes).unwrap();
    let store = SqliteStore::open(file.path()).await.unwrap();
    let mut told = 0;
    for n in 0..100 {
        told += usize::from(matches!(
            store.get(&key(n)).await,
            Err(StoreError::Corrupt { .. })
        ));
        assert!(store.claim(&key(n), &request()).await.is_err());
    }
    assert_eq!(told, 100);
}

/// P8: a file without the right to write is read, and no new operation starts.
#[tokio::test]
async fn p8_a_file_that_can_only_be_read() {
    let file = File::new();
    let store = file.store().await;
    complete(&store, "done", "answer").await;
    let pool = SqlitePool::connect_with(file.options().read_only(true)).await;
    let reader = SqliteStore::new(pool.unwrap());
    let replay = reader.claim(&key("done"), &request()).await.unwrap();
    assert_eq!(replay, Claim::Completed(answer("answer")));
    is_unavailable(reader.claim(&key("new"), &request()).await);
    is_unavailable(reader.forget(&key("done")).await);
    assert_eq!(store.get(&key("new")).await.unwrap(), None);
}
