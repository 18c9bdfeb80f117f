//! Waiting for the end of a claim.

use std::time::{Duration, Instant};

use sqlx::{
    AssertSqlSafe,
    postgres::{PgListener, PgPoolOptions},
};
use tokio::task::JoinHandle;
use tower_idempotency::store::DatabaseTransaction;
use tower_idempotency::{FencingToken, Lease, PostgresStore, Snapshot, State, Store, StoreKey};

use crate::support::{Own, TTL, answer, builder, claimed, key, server, soon};

/// The least time between two looks of a waiter that is told of ends.
const LEAST_LOOK: Duration = Duration::from_millis(500);

/// A store whose sessions can be told from those of others.
async fn watched(own: &Own, name: &str) -> PostgresStore {
    let options = server().options().application_name(name);
    let pool = PgPoolOptions::new()
        .max_connections(4)
        .connect_with(options);
    builder(&pool.await.unwrap(), &own.schema).build()
}

async fn count(own: &Own, sql: &'static str, name: &str) -> i64 {
    let count = sqlx::query_scalar(sql).bind(name).fetch_one(&own.pool);
    count.await.unwrap()
}

/// Sessions that listen, by the lock that they hold.
const LISTENERS: &str = "SELECT count(DISTINCT a.pid) FROM pg_stat_activity a \
     JOIN pg_locks l ON l.pid = a.pid WHERE a.application_name = $1 AND l.locktype = 'advisory'";

const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 \
     AND query LIKE '%advisory%'";

async fn until(own: &Own, sql: &'static str, name: &str, wanted: i64) {
    soon(async {
        while count(own, sql, name).await != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

type Waiting = JoinHandle<Option<Snapshot>>;

fn wait(store: &PostgresStore, key: &StoreKey, token: FencingToken) -> Waiting {
    let (store, key) = (store.clone(), key.clone());
    tokio::spawn(async move { store.wait(&key, token).await.unwrap() })
}

/// Waits in a store of its own, named by the key, and returns once the server knows of it.
async fn waiting(own: &Own, name: &str) -> (PostgresStore, Waiting, StoreKey, Lease) {
    let name = format!("{}_{name}", own.schema);
    let key = key(&name);
    let lease = claimed(&own.store, &key).await.lease;
    let store = watched(own, &name).await;
    let waiting = wait(&store, &key, lease.token);
    until(own, LISTENERS, &name, 1).await;
    // It reads once more before it waits.
    tokio::time::sleep(Duration::from_millis(20)).await;
    (store, waiting, key, lease)
}

/// S03, U30: a waiter in another process is woken at once by each kind of end, not by its next look.
#[tokio::test]
async fn s03_u30_a_waiter_elsewhere_is_woken_at_once() {
    let own = Own::new(4).await;
    for end in [
        "complete",
        "fail",
        "release",
        "give back",
        "forget",
        "transaction",
    ] {
        let mut fastest = Duration::MAX;
        // A busy machine may be slow, but not each time.
        for round in 0..5 {
            let (_store, waiting, key, lease) = waiting(&own, &format!("{end} {round}")).await;
            let store = &own.store;
            let mut start = Instant::now();
            match end {
                "complete" => store.complete(&key, &lease, &answer(), TTL).await.unwrap(),
                "fail" => store.fail(&key, &lease, TTL).await.unwrap(),
                "release" => store.release(&key, &lease, TTL).await.unwrap(),
                "give back" => store.give_back(&key, &lease, TTL).await.unwrap(),
                "forget" => assert!(store.forget(&key).await.unwrap()),
                _ => {
                    let mut transaction = own.pool.begin().await.unwrap();
                    transaction
                        .complete(store, &key, &lease, &answer(), TTL)
                        .await
                        .unwrap();
                    assert!(!waiting.is_finished());
                    start = Instant::now();
                    transaction.commit().await.unwrap();
                }
            }
            let found = soon(waiting).await.unwrap();
            let is_there = !matches!(end, "release" | "give back" | "forget");
            assert_eq!(found.is_some(), is_there, "{end}");
            fastest = fastest.min(start.elapsed());
        }
        assert!(fastest < LEAST_LOOK / 2, "{end}: {fastest:?}");
    }
}

/// P10: nothing is told where nobody waits, since telling takes a lock of the whole server.
#[tokio::test]
async fn p10_nothing_is_told_where_nobody_waits() {
    let own = Own::new(4).await;
    // The name of the channel stands in the statement.
    let other = server().pool(1).await;
    let store = builder(&other, &own.schema).build();
    let lease = claimed(&store, &key("first")).await.lease;
    store
        .complete(&key("first"), &lease, &answer(), TTL)
        .await
        .unwrap();
    let channel = "SELECT substring(statement FROM 'pg_notify\\(''([a-z0-9_]+)''') \
         FROM pg_prepared_statements WHERE statement LIKE '%pg_notify(''idem%' LIMIT 1";
    let channel: String = sqlx::query_scalar(channel).fetch_one(&other).await.unwrap();
    let mut listener = PgListener::connect_with(&other).await.unwrap();
    listener.listen(&channel).await.unwrap();

    let alone = key("alone");
    let lease = claimed(&own.store, &alone).await.lease;
    own.store
        .complete(&alone, &lease, &answer(), TTL)
        .await
        .unwrap();
    own.run(&format!("SELECT pg_notify('{channel}', 'mark')"))
        .await;
    let told = soon(listener.recv()).await.unwrap();
    assert_eq!(told.payload(), "mark");

    // U19: and where somebody does, no more than a hash of the key.
    let (_store, waiting, key, lease) = waiting(&own, "awaited").await;
    own.store
        .complete(&key, &lease, &answer(), TTL)
        .await
        .unwrap();
    let told = soon(listener.recv()).await.unwrap();
    assert_eq!(told.payload(), key.log_id());
    soon(waiting).await.unwrap();
}

/// P9: waiters of a store share one connection, which goes some time after the last of them, and
/// with the store.
#[tokio::test]
async fn p9_one_connection_listens_while_somebody_waits() {
    let own = Own::new(4).await;
    let keys: Vec<_> = (0..20).map(|n| key(&n.to_string())).collect();
    let name = own.schema.clone();
    let store = watched(&own, &name).await;
    let mut waits = Vec::new();
    let mut leases = Vec::new();
    for key in &keys {
        let lease = claimed(&own.store, key).await.lease;
        waits.push(wait(&store, key, lease.token));
        leases.push(lease);
    }
    until(&own, LISTENERS, &name, 1).await;
    for (key, lease) in keys.iter().zip(&leases) {
        own.store
            .complete(key, lease, &answer(), TTL)
            .await
            .unwrap();
    }
    for wait in waits {
        soon(wait).await.unwrap().unwrap();
    }
    until(&own, LISTENERS, &name, 0).await;
    assert_eq!(count(&own, SESSIONS, &name).await, 1, "it stays a while");
    until(&own, SESSIONS, &name, 0).await;

    // A waiter that is dropped leaves nothing behind either.
    let key = key("dropped");
    let lease = claimed(&own.store, &key).await.lease;
    let dropped = wait(&store, &key, lease.token);
    until(&own, LISTENERS, &name, 1).await;
    dropped.abort();
    until(&own, LISTENERS, &name, 0).await;
    drop((dropped.await, store));
    until(&own, SESSIONS, &name, 0).await;
}

/// P8: where the listening connection is ended by the server, waits end all the same, and those
/// that go on are told again.
#[tokio::test]
async fn p8_a_wait_outlives_its_connection() {
    let own = Own::new(4).await;
    let (_store, waiting, key, lease) = waiting(&own, "k").await;
    let name = key.parts().key.to_owned();
    let end = "SELECT pg_terminate_backend(a.pid, 30000) FROM pg_stat_activity a \
         JOIN pg_locks l ON l.pid = a.pid WHERE a.application_name = $1 AND l.locktype = 'advisory'";
    sqlx::query(end)
        .bind(&name)
        .execute(&own.pool)
        .await
        .unwrap();
    // By a new connection.
    until(&own, LISTENERS, &name, 1).await;
    own.store
        .complete(&key, &lease, &answer(), TTL)
        .await
        .unwrap();
    let found = soon(waiting).await.unwrap().unwrap();
    assert_eq!(found.record.state, State::Completed);
}

/// P8: where no connection is to be had for listening, waits poll.
#[tokio::test]
async fn p8_a_wait_polls_where_it_cannot_listen() {
    let own = Own::new(4).await;
    let role = format!("{}_role", own.schema);
    for grant in [
        format!("CREATE ROLE {role} LOGIN CONNECTION LIMIT 1"),
        format!("GRANT USAGE ON SCHEMA {} TO {role}", own.schema),
        format!("GRANT ALL ON {{t}} TO {role}"),
    ] {
        own.run(&grant).await;
    }
    let options = server().options().username(&role);
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_with(options);
    let store = builder(&pool.await.unwrap(), &own.schema).build();
    let key = key("k");
    let lease = claimed(&own.store, &key).await.lease;
    let waiting = wait(&store, &key, lease.token);
    let asked =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND query LIKE '%r.found%'";
    until(&own, asked, &role, 1).await;
    own.store
        .complete(&key, &lease, &answer(), TTL)
        .await
        .unwrap();
    assert!(soon(waiting).await.unwrap().is_some());
}

/// A store without notifications polls, and has no connection of its own.
#[tokio::test]
async fn s03_a_wait_polls_where_it_is_told_to() {
    let own = Own::new(4).await;
    let name = &own.schema;
    let options = server().options().application_name(name);
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .connect_with(options);
    let builder = builder(&pool.await.unwrap(), &own.schema);
    let store = builder.without_notifications().build();
    let key = key("k");
    let lease = claimed(&store, &key).await.lease;
    let waiting = wait(&store, &key, lease.token);
    let asked = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 \
         AND query LIKE '%r.found%'";
    until(&own, asked, name, 1).await;
    own.store
        .complete(&key, &lease, &answer(), TTL)
        .await
        .unwrap();
    assert!(soon(waiting).await.unwrap().is_some());
    assert_eq!(count(&own, SESSIONS, name).await, 0);
}

/// P5: a wait ends with the lease, which nobody tells of.
#[tokio::test]
async fn p5_a_wait_ends_with_the_lease() {
    let own = Own::new(4).await;
    let (_store, waiting, key, lease) = waiting(&own, "k").await;
    let soon_over = Duration::from_millis(300);
    own.store
        .renew(&key, &lease, soon_over, TTL, None)
        .await
        .unwrap();
    let found = soon(waiting).await.unwrap().unwrap();
    assert!(found.is_abandoned());
    let sql = format!("SELECT count(*) FROM {}", own.table());
    let rows: i64 = sqlx::query_scalar(AssertSqlSafe(sql))
        .fetch_one(&own.pool)
        .await
        .unwrap();
    assert_eq!(rows, 1);
}
