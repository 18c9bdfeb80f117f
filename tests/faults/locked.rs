//! Locks that somebody else has for longer than a store call may take: of an SQLite file, and of a
//! row of PostgreSQL.

use std::{sync::Arc, time::Instant};

use sqlx::{ConnectOptions, Connection, sqlite::SqliteConnectOptions};
use tower_idempotency::{Entry, Outcome};

use crate::{
    servers::postgres::PostgresServer,
    support::{Instance, PATIENCE, Place, RECORD_TIMEOUT, STORE_TIMEOUT, SqliteFile, Work},
};

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

/// P8: a claim waits for a row's lock beyond its deadline, and gets it in the end, unheard: it is
/// given back then, however often that was tried before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p8_a_row_is_locked() {
    let server = PostgresServer::shared();
    let work = Work::new();
    let instance = server.instance(&work).await;
    work.answers_with(500);
    let key = "a row is locked";
    instance.send(key).await.is_run(Outcome::Failed, 1);
    work.answers_with(201);

    let mut other = server.connect().await;
    let mut lock = other.begin().await.unwrap();
    let row = "SELECT FROM idempotency_records WHERE idempotency_key = $1 FOR UPDATE";
    let row = sqlx::query(row).bind(key).execute(&mut *lock);
    assert_eq!(row.await.unwrap().rows_affected(), 1);
    let start = Instant::now();
    instance.send(key).await.is_unavailable();
    // The first one looked before that.
    instance.calls.more("give_back", 2).await;
    lock.rollback().await.unwrap();
    instance.retry(key).await.is_run(Outcome::Completed, 2);
    // Its lease is 30 s.
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    instance.send(key).await.is_replay_of(2);
}
