//! Many at once, over several pools, as several processes are.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::future::join_all;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::Barrier;
use tower_idempotency::store::DatabaseTransaction;
use tower_idempotency::{Claim, ClaimRequest, Entry, PostgresStore, Store};

use crate::support::{
    LEASE, Own, TTL, answer, builder, claimed, claimed_as, key, request, server, soon,
};

/// Stores on one table, each with a pool whose sessions have this isolation level.
async fn stores(own: &Own, level: &str) -> Vec<PostgresStore> {
    let pools = (0..4).map(async |_| {
        let options = server().options();
        let options = options.options([("default_transaction_isolation", level)]);
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .connect_with(options);
        builder(&pool.await.unwrap(), &own.schema).build()
    });
    join_all(pools).await
}

const LEVELS: [&str; 3] = ["read committed", "repeatable read", "serializable"];

/// P1, S10, S14, S15, U01: of 64 claimers over four pools one is granted, whatever the isolation
/// level, for a new key, a failed one, an abandoned one and an expired one; the others are told so.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p1_u01_many_claimers_have_one_winner() {
    for level in LEVELS {
        let own = Own::new(1).await;
        let stores = stores(&own, level).await;
        for entry in ["new", "failed", "abandoned", "expired"] {
            let key = key(entry);
            let no_lease = ClaimRequest {
                lease: Duration::ZERO,
                ttl: if entry == "expired" {
                    Duration::ZERO
                } else {
                    TTL
                },
                ..request()
            };
            if entry != "new" {
                let lease = claimed_as(&own.store, &key, &no_lease).await.lease;
                if entry == "failed" {
                    own.store.fail(&key, &lease, TTL).await.unwrap();
                }
            }
            let barrier = Arc::new(Barrier::new(64));
            let tasks: Vec<_> = (0..64)
                .map(|n| {
                    let (store, key) = (stores[n % 4].clone(), key.clone());
                    let barrier = Arc::clone(&barrier);
                    tokio::spawn(async move {
                        barrier.wait().await;
                        store.claim(&key, &request()).await
                    })
                })
                .collect();
            let mut replies: BTreeMap<&str, usize> = BTreeMap::new();
            for task in tasks {
                let reply = match soon(task).await.unwrap().unwrap() {
                    Claim::Claimed(claimed) => match claimed.entry {
                        Entry::First => "first",
                        Entry::Retry => "retry",
                        Entry::Takeover => "takeover",
                    },
                    Claim::InProgress { .. } => "in progress",
                    other => panic!("{level}, {entry}: {other:?}"),
                };
                *replies.entry(reply).or_default() += 1;
            }
            let granted = match entry {
                "failed" => "retry",
                "abandoned" => "takeover",
                _ => "first",
            };
            let expected = BTreeMap::from([(granted, 1), ("in progress", 63)]);
            assert_eq!(replies, expected, "{level}, {entry}");
        }
    }
}

/// P1, P6: an owner that acts while others claim is either in time or refused, never both: of the
/// attempts on one key exactly one is recorded, and whoever asks afterwards gets its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p1_p6_owners_and_claimers_do_not_both_win() {
    for level in LEVELS {
        let own = Own::new(1).await;
        let stores = stores(&own, level).await;
        for round in 0..20 {
            let key = key(&round.to_string());
            let no_lease = ClaimRequest {
                lease: Duration::ZERO,
                ..request()
            };
            let lease = claimed_as(&own.store, &key, &no_lease).await.lease;
            let (first, second) = (stores[0].clone(), stores[1].clone());
            let answer = answer();
            let completing = first.complete(&key, &lease, &answer, TTL);
            let request = request();
            let claiming = second.claim(&key, &request);
            let (completed, claim) = soon(async { tokio::join!(completing, claiming) }).await;
            match (completed, claim.unwrap()) {
                (Ok(()), Claim::Completed(_)) => {}
                (Err(_), Claim::Claimed(taken)) => assert_eq!(taken.entry, Entry::Takeover),
                other => panic!("{level}, {round}: {other:?}"),
            }
        }
    }
}

/// Waits until a session waits for a lock of a row of this table.
async fn until_somebody_waits(own: &Own) {
    let waiting = "SELECT count(*) FROM pg_stat_activity \
         WHERE wait_event_type = 'Lock' AND query LIKE '%' || $1 || '%' AND pid <> pg_backend_pid()";
    soon(async {
        loop {
            let count: i64 = sqlx::query_scalar(waiting)
                .bind(format!("\"{}\".", own.schema))
                .fetch_one(&own.pool)
                .await
                .unwrap();
            if count > 0 {
                return;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
}

/// P1, P7: a claim that comes once the lease has ended waits for the transaction that completes the
/// record: it is told the answer if that is committed, and takes over if it is not.
#[tokio::test]
async fn p1_p7_a_takeover_waits_for_the_transaction_that_completes() {
    let own = Own::new(4).await;
    for commits in [true, false] {
        let key = key(&commits.to_string());
        let no_lease = ClaimRequest {
            lease: Duration::ZERO,
            ..request()
        };
        let lease = claimed_as(&own.store, &key, &no_lease).await.lease;
        let mut transaction = own.pool.begin().await.unwrap();
        transaction
            .complete(&own.store, &key, &lease, &answer(), TTL)
            .await
            .unwrap();
        let claiming = tokio::spawn({
            let (store, key) = (own.store.clone(), key.clone());
            async move { store.claim(&key, &request()).await }
        });
        until_somebody_waits(&own).await;
        assert!(!claiming.is_finished());
        if commits {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
        match soon(claiming).await.unwrap().unwrap() {
            Claim::Completed(found) if commits => assert_eq!(found, answer()),
            Claim::Claimed(taken) if !commits => assert_eq!(taken.entry, Entry::Takeover),
            other => panic!("{other:?}"),
        }
    }
}

/// U14: a claim that waits for the first one's insertion sees what became of it.
#[tokio::test]
async fn u14_a_claim_waits_for_an_insertion_that_is_not_committed() {
    let own = Own::new(4).await;
    let key = key("k");
    // The row of a claim that is not committed yet, made by moving one there.
    claimed(&own.store, &self::key("other")).await;
    let mut transaction = own.pool.begin().await.unwrap();
    let copy = format!(
        "UPDATE {} SET idempotency_key = 'k' WHERE idempotency_key = 'other'",
        own.table()
    );
    sqlx::query(sqlx::AssertSqlSafe(copy))
        .execute(&mut *transaction)
        .await
        .unwrap();
    let claiming = tokio::spawn({
        let (store, key) = (own.store.clone(), key.clone());
        async move { store.claim(&key, &request()).await }
    });
    until_somebody_waits(&own).await;
    transaction.commit().await.unwrap();
    let found = soon(claiming).await.unwrap().unwrap();
    assert!(matches!(found, Claim::InProgress { .. }), "{found:?}");
}

/// P6: a renewal that waited for the one who took the key over is refused.
#[tokio::test]
async fn p6_a_renewal_that_waited_sees_who_came_between() {
    let own = Own::new(4).await;
    let key = key("k");
    let lease = claimed(&own.store, &key).await.lease;
    let mut transaction = own.pool.begin().await.unwrap();
    let steal = format!(
        "UPDATE {} SET owner = decode(repeat('07', 16), 'hex')",
        own.table()
    );
    sqlx::query(sqlx::AssertSqlSafe(steal))
        .execute(&mut *transaction)
        .await
        .unwrap();
    let renewing = tokio::spawn({
        let (store, key) = (own.store.clone(), key.clone());
        async move {
            store
                .renew(&key, &lease, LEASE, TTL, Some("late".into()))
                .await
        }
    });
    until_somebody_waits(&own).await;
    transaction.commit().await.unwrap();
    let renewed = soon(renewing).await.unwrap();
    assert!(
        matches!(renewed, Err(tower_idempotency::StoreError::Superseded)),
        "{renewed:?}"
    );
    assert_eq!(own.count("checkpoint IS NULL").await, 1);
}
