//! Expired rows go in the course of claims.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use tower_idempotency::{Claim, ClaimRequest, Store};

use crate::support::{
    LEASE, Own, TTL, answer, builder, claimed, claimed_as, key, request, server, soon,
};

async fn complete_many(own: &Own, count: usize) {
    for n in 0..count {
        let key = key(&format!("old {n}"));
        let lease = claimed(&own.store, &key).await.lease;
        own.store
            .complete(&key, &lease, &answer(), TTL)
            .await
            .unwrap();
    }
}

/// S06, P9: under a stream of keys that are never seen again the table stays small.
#[tokio::test]
async fn s06_p9_the_table_stays_small() {
    let own = Own::new(1).await;
    let mut most = 0;
    for n in 0..300 {
        let key = key(&n.to_string());
        let lease = claimed(&own.store, &key).await.lease;
        let ttl = Duration::from_secs(60);
        own.store
            .complete(&key, &lease, &answer(), ttl)
            .await
            .unwrap();
        own.store.advance_clock(Duration::from_secs(10));
        most = most.max(own.count("true").await);
    }
    // Six live at a time.
    assert!(most <= 8, "{most}");
}

/// S06: each granted claim removes a bounded number, however many there are, and no live one.
#[tokio::test]
async fn s06_a_claim_removes_a_bounded_number() {
    let own = Own::new(1).await;
    complete_many(&own, 40).await;
    own.store.advance_clock(TTL - LEASE);
    let live = key("live");
    let lease = claimed(&own.store, &live).await.lease;
    own.store
        .complete(&live, &lease, &answer(), TTL)
        .await
        .unwrap();
    own.store.advance_clock(2 * LEASE);
    for (round, left) in [(0, 40 - 16 + 2), (1, 40 - 32 + 3), (2, 4), (3, 5)] {
        claimed(&own.store, &key(&format!("new {round}"))).await;
        assert_eq!(own.count("true").await, left, "{round}");
    }
    let found = own.store.claim(&live, &request()).await.unwrap();
    assert_eq!(found, Claim::Completed(answer()));
}

/// S06: a claim of an expired key takes its row over, and nothing else of it.
#[tokio::test]
async fn s06_an_expired_row_is_taken_over_as_a_new_one() {
    let own = Own::new(1).await;
    let key = key("k");
    let first = claimed(&own.store, &key).await.lease;
    own.store
        .renew(&key, &first, LEASE, TTL, Some("half".into()))
        .await
        .unwrap();
    own.store.fail(&key, &first, TTL).await.unwrap();
    let created_at = own
        .store
        .get(&key)
        .await
        .unwrap()
        .unwrap()
        .record
        .created_at;
    own.store.advance_clock(TTL + LEASE);
    let again = claimed(&own.store, &key).await;
    assert!(again.checkpoint.is_none() && again.lease.attempt == 1);
    assert!(again.lease.token > first.token);
    let record = own.store.get(&key).await.unwrap().unwrap().record;
    assert!(record.created_at > created_at);
    assert_eq!(own.count("true").await, 1);
}

/// P9: expired rows that others have locked are passed over, and nobody waits for them.
#[tokio::test]
async fn p9_locked_rows_are_passed_over() {
    let own = Own::new(2).await;
    complete_many(&own, 20).await;
    own.store.advance_clock(2 * TTL);
    let mut transaction = own.pool.begin().await.unwrap();
    let lock = format!(
        "SELECT FROM {} ORDER BY expires_at LIMIT 10 FOR UPDATE",
        own.table()
    );
    sqlx::query(AssertSqlSafe(lock))
        .fetch_all(&mut *transaction)
        .await
        .unwrap();
    soon(claimed(&own.store, &key("new"))).await;
    assert_eq!(own.count("true").await, 10 + 1);
    transaction.rollback().await.unwrap();
    claimed(&own.store, &key("newer")).await;
    assert_eq!(own.count("true").await, 2);
}

/// P1: claims of expired keys, each of which removes the others', do not wait for each other in a
/// ring.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p1_claims_of_expired_keys_do_not_deadlock() {
    let own = Own::new(1).await;
    let pool = server().pool(16).await;
    let store = builder(&pool, &own.schema).build();
    let expired = ClaimRequest {
        lease: Duration::ZERO,
        ttl: Duration::ZERO,
        ..request()
    };
    let tasks: Vec<_> = (0..16)
        .map(|task| {
            let store = store.clone();
            tokio::spawn(async move {
                for n in 0..40 {
                    let key = key(&format!("{}", (n * (task + 1)) % 24));
                    claimed_as(
                        &store,
                        &key,
                        &ClaimRequest {
                            owner: request().owner,
                            ..expired
                        },
                    )
                    .await;
                }
            })
        })
        .collect();
    for task in tasks {
        soon(task).await.unwrap();
    }
    let log = server().log();
    assert!(!log.contains("deadlock"), "{log}");
}
