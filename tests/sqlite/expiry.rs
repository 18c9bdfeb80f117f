//! What becomes of records that have expired, and of tokens when records are removed.

use std::time::Duration;

use sqlx::Executor;
use tower_idempotency::{Claim, Entry, Store};

use crate::support::*;

/// S05, S06, P9: keys that are never seen again do not fill the file: what has expired goes, a
/// bounded few with each new record.
#[tokio::test]
async fn s05_s06_p9_keys_that_never_come_back_go() {
    let file = File::new();
    let store = file.store().await;
    for n in 0..200 {
        complete(&store, n, "answer").await;
    }
    assert_eq!(count(&store).await, 200);
    store.advance_clock(TTL + LEASE);
    // Who only reads removes nothing.
    for n in 0..200 {
        assert_eq!(store.get(&key(n)).await.unwrap(), None);
    }
    assert_eq!(count(&store).await, 200);
    claim(&store, "new").await;
    assert_eq!(count(&store).await, 193, "eight go for one that comes");
    for n in 0..50 {
        claim(&store, format!("new {n}")).await;
    }
    assert_eq!(count(&store).await, 51);
}

/// S06, P9: in a steady stream the table stays as large as what lives.
#[tokio::test]
async fn s06_p9_a_stream_of_keys_keeps_its_size() {
    let file = File::new();
    let store = file.store().await;
    let mut most = 0;
    for n in 0..600 {
        complete(&store, n, "answer").await;
        store.advance_clock(TTL / 50);
        most = most.max(count(&store).await);
    }
    assert!(most <= 60, "{most}");
}

/// S05: an expired record is overwritten where it lies; its token counts on.
#[tokio::test]
async fn s05_an_expired_key_starts_anew() {
    let file = File::new();
    let store = file.store().await;
    let old = claim(&store, "k").await;
    store.advance_clock(TTL + LEASE);
    let Claim::Claimed(claimed) = store.claim(&key("k"), &request()).await.unwrap() else {
        panic!("not granted");
    };
    assert_eq!(claimed.entry, Entry::First);
    assert!(claimed.lease.token > old.token);
    assert_eq!(count(&store).await, 1);
}

/// S06, U18: a record that cannot be read goes when it has expired, as any other; until then it is
/// told of.
#[tokio::test]
async fn s06_u18_an_unreadable_record_goes_with_its_time() {
    let file = File::new();
    let store = file.store().await;
    complete(&store, "newer", "answer").await;
    sqlx::query("UPDATE idempotency_records SET version = 2")
        .execute(store.pool())
        .await
        .unwrap();
    claim(&store, "k").await;
    is_corrupt(store.get(&key("newer")).await);
    store.advance_clock(TTL + LEASE);
    is_corrupt(store.claim(&key("newer"), &request()).await);
    claim(&store, "another").await;
    assert_eq!(store.get(&key("newer")).await.unwrap(), None);
}

/// P6: tokens grow over a removal also where the clock of the next claimant is behind: it was set
/// back, or was read before the record came and went.
#[tokio::test]
async fn p6_tokens_grow_where_the_clock_does_not() {
    let file = File::new();
    let (ahead, behind) = (file.store().await, file.store().await);
    ahead.advance_clock(Duration::from_secs(3600));
    let released = claim(&ahead, "k").await;
    ahead.release(&key("k"), &released, TTL).await.unwrap();
    assert_eq!(count(&ahead).await, 0);
    let next = claim(&behind, "k").await;
    assert!(next.token > released.token);

    assert!(behind.forget(&key("k")).await.unwrap());
    let after = claim(&behind, "k").await;
    assert!(after.token > next.token);
}

/// P6: the same for a claim that looked before, and writes after, another one came and went.
#[tokio::test]
async fn p6_a_claim_that_comes_late_looks_again() {
    let file = File::new();
    let store = file.store().await;
    let seen = claim(&store, "k").await;
    let mut other = file.pool().await.acquire().await.unwrap().detach();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    // Looks, and waits for the lock.
    let mut late = std::pin::pin!(claim(&store, "new"));
    let early = tokio::time::timeout(Duration::from_millis(100), late.as_mut()).await;
    assert!(early.is_err(), "it should wait for the lock");
    let hour = 3_600_000_000;
    let token = seen.token.as_u64() + hour;
    let come_and_gone = format!(
        "UPDATE idempotency_records SET idempotency_key = 'new', fencing_token = {token};
         DELETE FROM idempotency_records; COMMIT"
    );
    let come_and_gone = sqlx::raw_sql(sqlx::AssertSqlSafe(come_and_gone));
    other.execute(come_and_gone).await.unwrap();
    assert!(soon(late).await.token.as_u64() > token);
}

/// P6: claims and releases of one key by many tasks and pools never give a token twice, nor a
/// smaller one later.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p6_tokens_grow_under_load() {
    let file = File::new();
    let stores = [file.store().await, file.store().await];
    let tasks: Vec<_> = (0..8)
        .map(|n| {
            let store = stores[n % 2].clone();
            tokio::spawn(async move {
                let mut tokens = Vec::new();
                while tokens.len() < 25 {
                    match store.claim(&key("k"), &request()).await.unwrap() {
                        Claim::Claimed(claimed) => {
                            tokens.push(claimed.lease.token);
                            let key = key("k");
                            store.release(&key, &claimed.lease, TTL).await.unwrap();
                        }
                        _ => tokio::task::yield_now().await,
                    }
                }
                assert!(tokens.is_sorted());
                tokens
            })
        })
        .collect();
    let mut all = Vec::new();
    for task in tasks {
        all.extend(soon(task).await.unwrap());
    }
    all.sort();
    all.dedup();
    assert_eq!(all.len(), 200);
}
