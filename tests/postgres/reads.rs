//! What only reads, and what an operation costs on the wire.

use std::{future::Future, time::Duration};

use sqlx::{AssertSqlSafe, PgPool, Row};
use tower_idempotency::{Claim, ClaimRequest, Fingerprint, PostgresStore, Store, StoreKey};

use crate::{
    servers::{
        postgres::{PostgresServer, options_for},
        proxy::Proxy,
    },
    support::{
        LEASE, Own, TTL, answer, builder, claimed, claimed_as, fingerprint, key, request, server,
        soon,
    },
};

/// Brings a record into each state, and names a claim that is not granted in it.
async fn refused_claims(store: &PostgresStore) -> Vec<(StoreKey, ClaimRequest, Claim)> {
    let completed = key("completed");
    let lease = claimed(store, &completed).await.lease;
    store
        .complete(&completed, &lease, &answer(), TTL)
        .await
        .unwrap();
    let running = key("running");
    let token = claimed(store, &running).await.lease.token;
    let abandoned = key("abandoned");
    let no_lease = ClaimRequest {
        lease: Duration::ZERO,
        ..request()
    };
    claimed_as(store, &abandoned, &no_lease).await;
    let other = ClaimRequest {
        fingerprint: fingerprint("other"),
        ..request()
    };
    let other_algorithm = ClaimRequest {
        fingerprint: Fingerprint::hasher("t/2").finish(),
        ..request()
    };
    let no_takeover = ClaimRequest {
        take_over: false,
        ..request()
    };
    vec![
        (completed.clone(), request(), Claim::Completed(answer())),
        (completed.clone(), other, Claim::Mismatch),
        (completed, other_algorithm, Claim::OtherAlgorithm),
        (running.clone(), request(), Claim::InProgress { token }),
        (running.clone(), other, Claim::Mismatch),
        (running, other_algorithm, Claim::OtherAlgorithm),
        (abandoned.clone(), no_takeover, Claim::Abandoned),
        (abandoned, other, Claim::Mismatch),
    ]
}

/// P2, U30: what is not granted is a pure read: no transaction number, no lock left on the row, no
/// new version of it; and expired rows stay for who writes anyway.
#[tokio::test]
async fn p2_u30_what_is_not_granted_is_a_pure_read() {
    // Nobody else uses up transaction numbers there.
    let server = PostgresServer::with(&["fsync=off", "autovacuum=off"]);
    let pool = server.pool(1).await;
    let store = PostgresStore::new(pool.clone());
    store.migrate().await.unwrap();
    let expired = ClaimRequest {
        lease: Duration::ZERO,
        ttl: Duration::ZERO,
        ..request()
    };
    let claims = refused_claims(&store).await;
    claimed_as(&store, &key("expired"), &expired).await;
    let state = async || {
        let rows = "SELECT txid_snapshot_xmax(txid_current_snapshot())::text, \
             string_agg(concat(ctid, xmin, xmax, r), ';' ORDER BY idempotency_key) \
             FROM idempotency_records r";
        let row = sqlx::query(rows).fetch_one(&pool).await.unwrap();
        (row.get::<String, _>(0), row.get::<String, _>(1))
    };
    let before = state().await;
    for (key, request, reply) in &claims {
        assert_eq!(store.claim(key, request).await.unwrap(), *reply);
        assert!(store.get(key).await.unwrap().is_some());
    }
    assert_eq!(store.get(&key("absent")).await.unwrap(), None);
    assert_eq!(state().await, before);

    // The measure measures.
    claimed(&store, &key("new")).await;
    assert_ne!(state().await, before);
}

/// P1, P8: neither a replay nor a conflict waits for a transaction that has the row.
#[tokio::test]
async fn p1_p8_what_is_not_granted_waits_for_no_lock() {
    let own = Own::new(2).await;
    let claims = refused_claims(&own.store).await;
    let mut transaction = own.pool.begin().await.unwrap();
    let lock = format!("SELECT FROM {} FOR UPDATE", own.table());
    let locked = sqlx::query(AssertSqlSafe(lock))
        .fetch_all(&mut *transaction)
        .await
        .unwrap();
    assert_eq!(locked.len(), 3);
    for (key, request, reply) in &claims {
        let found = soon(own.store.claim(key, request)).await.unwrap();
        assert_eq!(found, *reply);
        assert!(soon(own.store.get(key)).await.unwrap().is_some());
    }
    transaction.rollback().await.unwrap();
}

/// How often the server speaks during `operation`, and while the pool takes connections back, which
/// tests them.
async fn trips<T>(proxy: &Proxy, pool: &PgPool, operation: impl Future<Output = T>) -> u64 {
    // The only connection, at rest.
    let connection = pool.acquire().await.unwrap();
    let before = proxy.round_trips();
    drop(connection);
    operation.await;
    let _connection = pool.acquire().await.unwrap();
    proxy.round_trips() - before
}

/// U11: each operation takes one round trip: as many as `SELECT 1` through the same pool.
#[tokio::test]
async fn u11_an_operation_is_one_round_trip() {
    let own = Own::new(1).await;
    let proxy = Proxy::before(server().address()).await;
    let pool = sqlx::postgres::PgPoolOptions::new()
        .max_connections(1)
        .test_before_acquire(false)
        .connect_with(options_for(proxy.address()))
        .await
        .unwrap();
    let store = builder(&pool, &own.schema).build();
    let answer = answer();
    // The first round prepares the statements.
    for round in 0..2 {
        let select = trips(&proxy, &pool, sqlx::query("SELECT 1").execute(&pool)).await;
        let [done, other] = ["done", "other"].map(|name| key(&format!("{name} {round}")));
        let request = request();
        let mut counts = vec![
            trips(&proxy, &pool, store.claim(&done, &request)).await,
            trips(&proxy, &pool, store.claim(&other, &request)).await,
        ];
        // The same owner again, for its proof.
        let lease = claimed_as(&store, &done, &request).await.lease;
        let others = claimed_as(&store, &other, &request).await.lease;
        counts.extend([
            trips(&proxy, &pool, store.renew(&done, &lease, LEASE, TTL, None)).await,
            trips(&proxy, &pool, store.claim(&done, &self::request())).await,
            trips(&proxy, &pool, store.complete(&done, &lease, &answer, TTL)).await,
            trips(&proxy, &pool, store.claim(&done, &self::request())).await,
            trips(&proxy, &pool, store.get(&done)).await,
            trips(&proxy, &pool, store.forget(&done)).await,
            trips(&proxy, &pool, store.fail(&other, &others, TTL)).await,
            trips(&proxy, &pool, store.release(&other, &others, TTL)).await,
            trips(&proxy, &pool, store.give_back(&other, &others, TTL)).await,
        ]);
        if round > 0 {
            assert_eq!(counts, vec![select; counts.len()]);
        }
    }
}
