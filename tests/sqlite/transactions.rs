//! Completion within a transaction of the caller's.

use std::time::Duration;

use sqlx::{Executor, SqliteConnection};
use tower_idempotency::store::{DatabaseTransaction, NotCompleted};
use tower_idempotency::{Claim, Lease, SqliteStore, State, Store};

use crate::support::*;

/// A file with a table of the business, too.
async fn business() -> (File, SqliteStore) {
    let file = File::new();
    let store = file.store().await;
    store
        .pool()
        .execute("CREATE TABLE transfers (amount INTEGER NOT NULL)")
        .await
        .unwrap();
    (file, store)
}

async fn transfer(connection: &mut SqliteConnection) {
    connection
        .execute("INSERT INTO transfers VALUES (50)")
        .await
        .unwrap();
}

async fn transfers(store: &SqliteStore) -> i64 {
    let rows = sqlx::query_scalar("SELECT count(*) FROM transfers");
    rows.fetch_one(store.pool()).await.unwrap()
}

/// Does the work and records it in one transaction, and commits where the store lets it.
async fn run(store: &SqliteStore, name: &str, lease: &Lease) -> Result<(), NotCompleted> {
    let mut transaction = store.pool().begin().await.unwrap();
    transfer(&mut transaction).await;
    let (key, answer) = (key(name), answer("paid"));
    transaction
        .complete(store, &key, lease, &answer, TTL)
        .await?;
    transaction.commit().await.unwrap();
    Ok(())
}

async fn state(store: &SqliteStore, name: &str) -> Option<State> {
    let found = store.get(&key(name)).await.unwrap();
    found.map(|found| found.record.state)
}

/// P7, S08: work and record are there together, and the retry gets the answer.
#[tokio::test]
async fn p7_s08_both_commit() {
    let (_file, store) = business().await;
    let lease = claim(&store, "k").await;
    run(&store, "k", &lease).await.unwrap();
    assert_eq!(transfers(&store).await, 1);
    let replay = store.claim(&key("k"), &request()).await.unwrap();
    assert_eq!(replay, Claim::Completed(answer("paid")));
}

/// P7: rolled back, or dropped, neither is there, and the record is in progress as before.
#[tokio::test]
async fn p7_neither_is_there_after_a_rollback() {
    let (_file, store) = business().await;
    let lease = claim(&store, "k").await;
    for rolled_back in [true, false] {
        let mut transaction = store.pool().begin().await.unwrap();
        transfer(&mut transaction).await;
        transaction
            .complete(&store, &key("k"), &lease, &answer("paid"), TTL)
            .await
            .unwrap();
        // Nobody else sees it before.
        assert_eq!(state(&store, "k").await, Some(State::InProgress));
        match rolled_back {
            true => transaction.rollback().await.unwrap(),
            false => drop(transaction),
        }
        soon(async { store.renew(&key("k"), &lease, LEASE, TTL, None).await })
            .await
            .unwrap();
        assert_eq!(transfers(&store).await, 0);
        assert_eq!(state(&store, "k").await, Some(State::InProgress));
    }
    run(&store, "k", &lease).await.unwrap();
    assert_eq!(transfers(&store).await, 1);
}

/// P7: the lease ended, and nobody took over: the owner may complete.
#[tokio::test]
async fn p7_after_the_lease_the_owner_may_complete() {
    let (_file, store) = business().await;
    let lease = claim(&store, "k").await;
    store.advance_clock(2 * LEASE);
    run(&store, "k", &lease).await.unwrap();
    assert_eq!(state(&store, "k").await, Some(State::Completed));
}

/// P6, P7: each way in which the record is not the owner's to complete has a name, changes nothing,
/// and leaves no row of the business behind.
#[tokio::test]
async fn p6_p7_whoever_lost_the_record_commits_nothing() {
    let (_file, store) = business().await;
    let refused = async |name: &str, lease: &Lease| {
        let before = store
            .get(&key(name))
            .await
            .unwrap()
            .map(|found| found.record);
        let refused = run(&store, name, lease).await.unwrap_err();
        let after = store
            .get(&key(name))
            .await
            .unwrap()
            .map(|found| found.record);
        assert_eq!(before, after, "{name}");
        refused
    };

    let lease = claim(&store, "completed").await;
    let key_of = key("completed");
    store
        .complete(&key_of, &lease, &answer("first"), TTL)
        .await
        .unwrap();
    let twice = refused("completed", &lease).await;
    assert!(matches!(twice, NotCompleted::Completed), "{twice:?}");

    let lease = claim(&store, "failed").await;
    store.fail(&key("failed"), &lease, TTL).await.unwrap();
    let failed = refused("failed", &lease).await;
    assert!(matches!(failed, NotCompleted::Failed), "{failed:?}");

    let lease = claim(&store, "released").await;
    store.release(&key("released"), &lease, TTL).await.unwrap();
    let gone = refused("released", &lease).await;
    assert!(matches!(gone, NotCompleted::Gone), "{gone:?}");

    let stale = claim(&store, "taken over").await;
    store.advance_clock(2 * LEASE);
    let newer = claim(&store, "taken over").await;
    let lost = refused("taken over", &stale).await;
    assert!(matches!(lost, NotCompleted::Superseded), "{lost:?}");
    run(&store, "taken over", &newer).await.unwrap();
    let lost = refused("taken over", &stale).await;
    assert!(matches!(lost, NotCompleted::Superseded), "{lost:?}");

    let lease = claim(&store, "expired").await;
    store.advance_clock(LEASE + TTL);
    let gone = refused("expired", &lease).await;
    assert!(matches!(gone, NotCompleted::Gone), "{gone:?}");

    assert_eq!(transfers(&store).await, 1, "that of the newer owner");
}

/// P1, P7: while the transaction holds the lock its lease may end, but nobody can take over:
/// whoever tries waits, and then gets the answer.
#[tokio::test]
async fn p1_p7_nobody_takes_over_before_the_commit() {
    let (_file, store) = business().await;
    let asked = tower_idempotency::ClaimRequest {
        lease: Duration::from_millis(20),
        ..request()
    };
    let Claim::Claimed(claimed) = store.claim(&key("k"), &asked).await.unwrap() else {
        panic!("not granted");
    };
    let mut transaction = store.pool().begin().await.unwrap();
    transfer(&mut transaction).await;
    let (key, answer) = (key("k"), answer("paid"));
    transaction
        .complete(&store, &key, &claimed.lease, &answer, TTL)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(store.get(&key).await.unwrap().unwrap().is_abandoned());
    let later = request();
    let mut takeover = std::pin::pin!(store.claim(&key, &later));
    let early = tokio::time::timeout(Duration::from_millis(100), takeover.as_mut()).await;
    assert!(early.is_err(), "it should wait for the lock");
    transaction.commit().await.unwrap();
    let claim = soon(takeover).await.unwrap();
    assert_eq!(claim, Claim::Completed(answer));
    assert_eq!(transfers(&store).await, 1);
}

/// P7: two executions meet after the lease of the first ended, with nothing unique in the table of
/// the business: one row.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p7_two_executions_leave_one_row() {
    let (_file, store) = business().await;
    for round in 0..20_i64 {
        let name = round.to_string();
        let first = claim(&store, &name).await;
        store.advance_clock(2 * LEASE);
        let second = claim(&store, &name).await;
        let runs = [first, second].map(|lease| {
            let (store, name) = (store.clone(), name.clone());
            tokio::spawn(async move { run(&store, &name, &lease).await.is_ok() })
        });
        let [first, second] = runs;
        assert!(!first.await.unwrap());
        assert!(second.await.unwrap());
        assert_eq!(transfers(&store).await, round + 1);
    }
}

/// P7: a transaction that read before somebody else wrote is told to begin again, and it can.
#[tokio::test]
async fn p7_a_transaction_that_read_too_early_begins_again() {
    let (_file, store) = business().await;
    let lease = claim(&store, "k").await;
    let mut transaction = store.pool().begin().await.unwrap();
    let _: i64 = sqlx::query_scalar("SELECT count(*) FROM transfers")
        .fetch_one(&mut *transaction)
        .await
        .unwrap();
    claim(&store, "another").await;
    let refused = transaction
        .complete(&store, &key("k"), &lease, &answer("paid"), TTL)
        .await;
    assert!(
        matches!(refused, Err(NotCompleted::Conflict(_))),
        "{refused:?}"
    );
    transaction.rollback().await.unwrap();
    run(&store, "k", &lease).await.unwrap();
}

/// P1, P7: the lock is held from the first look at the record on, so that what was seen stays so
/// until the end of the transaction.
#[tokio::test]
async fn p1_p7_the_lock_comes_before_the_look() {
    let (file, store) = business().await;
    let lease = claim(&store, "k").await;
    let impatient = file.impatient(Duration::from_millis(20), 1).await;
    let mut transaction = store.pool().begin().await.unwrap();
    let (gone, answer) = (key("gone"), answer("paid"));
    let refused = transaction.complete(&store, &gone, &lease, &answer, TTL);
    assert!(matches!(refused.await, Err(NotCompleted::Gone)));
    is_unavailable(impatient.claim(&gone, &request()).await);
    transaction.rollback().await.unwrap();
    claim(&impatient, "gone").await;
}

/// S03: whoever waits for a record that is completed so sees it, though nobody says so.
#[tokio::test]
async fn s03_a_wait_ends_with_the_commit() {
    let (_file, store) = business().await;
    let lease = claim(&store, "k").await;
    let waiter = store.clone();
    let waiting = tokio::spawn(async move { waiter.wait(&key("k"), lease.token).await });
    run(&store, "k", &lease).await.unwrap();
    let found = soon(waiting).await.unwrap().unwrap().unwrap();
    assert_eq!(found.record.payload, Some(answer("paid")));
}
