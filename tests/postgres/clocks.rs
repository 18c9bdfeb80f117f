//! Whose clock counts.

use std::time::{Duration, SystemTime};

use sqlx::{Row, postgres::PgPoolOptions};
use tower_idempotency::store::DatabaseTransaction;
use tower_idempotency::{Entry, Store};

use crate::support::{LEASE, Own, TTL, answer, builder, claimed, key, server};

/// The session's settings change nothing: not its time zone, nor how it writes dates, nor where it
/// looks for names.
#[tokio::test]
async fn s05_the_sessions_settings_do_not_matter() {
    let own = Own::new(1).await;
    let options = server().options().options([
        ("timezone", "Asia/Kathmandu"),
        ("datestyle", "SQL,DMY"),
        ("intervalstyle", "sql_standard"),
        ("search_path", "nowhere"),
        ("bytea_output", "escape"),
        ("extra_float_digits", "0"),
    ]);
    let pool = PgPoolOptions::new().connect_with(options).await.unwrap();
    let store = builder(&pool, &own.schema).build();
    store.migrate().await.unwrap();
    let [old, new] = ["old", "new"].map(key);
    let here = claimed(&own.store, &old).await.lease;
    let there = claimed(&store, &new).await.lease;
    assert!(there.token > here.token);
    // Server and client share this machine's clock: hours would show.
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    for reader in [&own.store, &store] {
        let found = reader.get(&new).await.unwrap().unwrap();
        let read = Duration::from_micros(found.now.as_micros());
        assert!(read.abs_diff(now) < Duration::from_secs(120));
        let record = found.record;
        assert_eq!(record.lease_until.since(record.created_at), LEASE);
        assert_eq!(record.expires_at.since(record.lease_until), TTL);
        assert_eq!(record.created_at.as_micros(), there.token.as_u64());
    }
    store.complete(&new, &there, &answer(), TTL).await.unwrap();
    store.fail(&old, &here, TTL).await.unwrap();
    assert_eq!(claimed(&store, &old).await.entry, Entry::Retry);
}

/// P7: within a transaction the time is that of the statement, not of the transaction's beginning.
#[tokio::test]
async fn p7_a_long_transaction_does_not_stop_the_clock() {
    let own = Own::new(2).await;
    let key = key("k");
    let lease = claimed(&own.store, &key).await.lease;
    let mut transaction = own.pool.begin().await.unwrap();
    let before = "SELECT (extract(epoch FROM now()) * 1000000)::bigint, pg_sleep(0.2)";
    let began = sqlx::query(before)
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
    let began: i64 = began.get(0);
    transaction
        .complete(&own.store, &key, &lease, &answer(), TTL)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    let record = own.store.get(&key).await.unwrap().unwrap().record;
    assert!(record.lease_until.as_micros() >= began as u64 + 200_000);
    assert_eq!(record.expires_at.since(record.lease_until), TTL);
}
