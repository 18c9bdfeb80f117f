//! An SQLite file whose write lock somebody else has for longer than a store call may take.

use std::sync::Arc;

use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};
use tower_idempotency::{Entry, Outcome};

use crate::support::{Instance, PATIENCE, Place, RECORD_TIMEOUT, STORE_TIMEOUT, SqliteFile, Work};

/// P8, P2, P3: meanwhile nothing new runs, and what is recorded is replayed all the same; what ran
/// is recorded once the lock is free.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_p3_a_file_is_locked() {
    let file = SqliteFile::new();
    let work = Work::new();
    let instance = file.instance(&work).await;
    instance.send("done").await.is_run(Outcome::Completed, 1);
    work.entered().await;
    work.hold();
    let first = instance.start("held");
    work.entered().await;

    let options = SqliteConnectOptions::new().filename(file.path());
    let mut other = options.connect().await.unwrap();
    let lock = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let refused = instance.send("new").await;
    refused.is_unavailable();
    assert!(refused.took >= STORE_TIMEOUT, "{refused:?}");
    assert!(refused.took < PATIENCE / 2, "{refused:?}");
    instance.send("done").await.is_replay_of(1);
    instance.send("held").await.is_in_progress();
    work.let_go();
    let answer = first.await.unwrap();
    answer.is_run(Outcome::Unrecorded, 2);
    assert!(answer.took >= RECORD_TIMEOUT, "{answer:?}");
    assert_eq!(work.count(), 2);

    lock.rollback().await.unwrap();
    instance.drain().await;
    instance.send("held").await.is_replay_of(2);
    work.let_go();
    instance.retry("new").await.is_run(Outcome::Completed, 3);
    let run = &work.runs()[2];
    assert_eq!((run.attempt, run.entry), (1, Entry::First));
}

/// P8: a table that nobody made yet: nothing runs without a record.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_table_is_missing() {
    let file = SqliteFile::new();
    let work = Work::new();
    let store = tower_idempotency::SqliteStore::open(file.path()).await;
    let instance = Instance::new(Arc::new(store.unwrap()), &work);
    instance.send("k").await.is_unavailable();
    assert_eq!(work.count(), 0);
    // Somebody makes it.
    let made = file.instance(&work).await;
    made.send("other").await.is_run(Outcome::Completed, 1);
    instance.retry("k").await.is_run(Outcome::Completed, 2);
}
