//! One writer at a time: who waits for whom, and what is left of a call that is given up.

use std::{pin::pin, time::Duration};

use futures::future::join_all;
use sqlx::{Connection, Executor, SqliteConnection};
use tower_idempotency::{Claim, Fingerprint, SqliteStore, Store};

use crate::support::*;

/// Somebody else, writing.
async fn lock(file: &File) -> SqliteConnection {
    let mut connection = file.pool().await.acquire().await.unwrap().detach();
    connection.execute("BEGIN IMMEDIATE").await.unwrap();
    connection
}

async fn unlock(mut connection: SqliteConnection) {
    connection.execute("COMMIT").await.unwrap();
    connection.close().await.unwrap();
}

/// P2, S09: what was recorded is replayed, and a conflict and a mismatch are told, while somebody
/// else writes.
#[tokio::test]
async fn p2_s09_who_only_reads_waits_for_nobody() {
    let file = File::new();
    let store = file.store().await;
    complete(&store, "done", "answer").await;
    let lease = claim(&store, "running").await;
    let other = lock(&file).await;
    let reads = async {
        let replay = store.claim(&key("done"), &request()).await.unwrap();
        assert_eq!(replay, Claim::Completed(answer("answer")));
        let conflict = store.claim(&key("running"), &request()).await.unwrap();
        let token = lease.token;
        assert_eq!(conflict, Claim::InProgress { token });
        let mut asked = request();
        asked.fingerprint = Fingerprint::hasher("t/1").raw("other").clone().finish();
        let mismatch = store.claim(&key("running"), &asked).await.unwrap();
        assert_eq!(mismatch, Claim::Mismatch);
        let found = store.get(&key("running")).await.unwrap().unwrap();
        assert_eq!(found.record.owner, lease.owner);
        store.wait(&key("done"), token).await.unwrap().unwrap();
    };
    // Less than it would wait for the lock.
    tokio::time::timeout(Duration::from_secs(4), reads)
        .await
        .expect("nobody waits for the lock");
    unlock(other).await;
}

/// P2: a replay commits nothing, which is what costs time on a disk.
#[tokio::test]
async fn p2_a_replay_writes_nothing() {
    let file = File::new();
    let store = file.store().await;
    complete(&store, "done", "answer").await;
    let mut watcher = file.pool().await.acquire().await.unwrap().detach();
    // Changes with each commit of another connection.
    let version = async |watcher: &mut SqliteConnection| -> i64 {
        let version = sqlx::query_scalar("PRAGMA data_version");
        version.fetch_one(watcher).await.unwrap()
    };
    let before = version(&mut watcher).await;
    for _ in 0..10 {
        store.claim(&key("done"), &request()).await.unwrap();
        store.get(&key("absent")).await.unwrap();
    }
    assert_eq!(version(&mut watcher).await, before);
    claim(&store, "another").await;
    assert_ne!(version(&mut watcher).await, before);
}

/// P1: a claim that meets another writer goes on when that one is done.
#[tokio::test]
async fn p1_a_claim_waits_for_the_lock() {
    let file = File::new();
    let store = file.store().await;
    let other = lock(&file).await;
    let mut waiting = pin!(claim(&store, "k"));
    let early = tokio::time::timeout(Duration::from_millis(100), waiting.as_mut()).await;
    assert!(early.is_err(), "it should wait for the lock");
    unlock(other).await;
    assert_eq!(soon(waiting).await.attempt, 1);
}

/// P8: where the lock is held for too long the store cannot be asked, and nothing is half done.
#[tokio::test]
async fn p8_a_lock_held_for_too_long_is_unavailable() {
    let file = File::new();
    let store = file.impatient(Duration::from_millis(50), 5).await;
    let lease = claim(&store, "running").await;
    let running = key("running");
    let other = lock(&file).await;
    let calls = async {
        is_unavailable(store.claim(&key("k"), &request()).await);
        is_unavailable(store.renew(&running, &lease, LEASE, TTL, None).await);
        let answer = answer("x");
        is_unavailable(store.complete(&running, &lease, &answer, TTL).await);
        is_unavailable(store.fail(&running, &lease, TTL).await);
        is_unavailable(store.release(&running, &lease, TTL).await);
        is_unavailable(store.give_back(&running, &lease, TTL).await);
        is_unavailable(store.forget(&running).await);
    };
    soon(calls).await;
    let before = store.get(&running).await.unwrap().unwrap().record;
    unlock(other).await;
    assert_eq!(store.get(&key("k")).await.unwrap(), None);
    let after = store.get(&running).await.unwrap().unwrap().record;
    assert_eq!(after, before);
    store
        .complete(&running, &lease, &answer("x"), TTL)
        .await
        .unwrap();
}

/// P8, U13: calls that are given up while somebody else holds the lock take no connections away
/// from readers, and leave no lock behind. Those that did not have their turn do nothing.
#[tokio::test]
async fn p8_u13_calls_given_up_leave_nothing_behind() {
    let file = File::new();
    let store = file.impatient(Duration::from_secs(60), 2).await;
    complete(&store, "done", "answer").await;
    let other = lock(&file).await;
    for n in 0..20 {
        let (key, request) = (key(n), request());
        let mut leaves = Box::pin(store.claim(&key, &request));
        let given_up = tokio::time::timeout(Duration::from_millis(10), leaves.as_mut()).await;
        assert!(given_up.is_err());
    }
    let replay = soon(async { store.claim(&key("done"), &request()).await }).await;
    assert!(matches!(replay, Ok(Claim::Completed(_))));
    unlock(other).await;
    soon(claim(&store, "next")).await;
    let left = count(&store).await;
    assert!(left <= 3, "one of them had its turn, not {}", left - 2);
    soon(async { unlock(lock(&file).await).await }).await;
}

/// P9: a call that somebody holds and does not poll holds nothing that others need.
#[tokio::test]
async fn p9_calls_that_nobody_polls_are_in_nobodys_way() {
    let file = File::new();
    let store = file.impatient(Duration::from_secs(60), 1).await;
    let request = request();
    let keys: Vec<_> = (0..50).map(key).collect();
    let claims = keys.iter().map(|key| Box::pin(store.claim(key, &request)));
    let mut claims: Vec<_> = claims.collect();
    for claim in &mut claims {
        assert!(futures::poll!(claim.as_mut()).is_pending());
    }
    soon(claim(&store, "another")).await;
    soon(complete(&store, "and another", "answer")).await;
    for claim in soon(join_all(claims)).await {
        assert!(matches!(claim, Ok(Claim::Claimed(_))));
    }
}

/// A call may be dropped at any point: it did everything or nothing, and the next one goes on.
#[tokio::test]
async fn p1_a_call_is_dropped_anywhere() {
    let file = File::new();
    let store = file.store().await;
    for polls in 0..40 {
        let (key, request, answer) = (key(polls), request(), answer("x"));
        let mut call = Box::pin(async {
            let Claim::Claimed(claimed) = store.claim(&key, &request).await.unwrap() else {
                panic!("not granted");
            };
            store.complete(&key, &claimed.lease, &answer, TTL).await
        });
        for _ in 0..polls {
            if futures::poll!(call.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
            std::thread::yield_now();
        }
        drop(call);
        // Whole, whatever it is.
        store.get(&key).await.unwrap();
        soon(complete(&store, format!("after {polls}"), "answer")).await;
    }
}

/// The same for the migration.
#[tokio::test]
async fn a_migration_is_dropped_anywhere() {
    let file = File::new();
    let store = SqliteStore::open(file.path()).await.unwrap();
    for polls in 0..40 {
        let mut migration = Box::pin(store.migrate());
        for _ in 0..polls {
            if futures::poll!(migration.as_mut()).is_ready() {
                break;
            }
            tokio::task::yield_now().await;
            std::thread::sleep(Duration::from_micros(100));
        }
        drop(migration);
        let made = sqlx::query_scalar("SELECT count(*) FROM sqlite_schema WHERE sql NOT NULL");
        let made: i64 = soon(made.fetch_one(store.pool())).await.unwrap();
        assert!(made == 0 || made == 5, "{made}");
    }
    soon(store.migrate()).await.unwrap();
    complete(&store, "k", "answer").await;
}

/// S14, U30: many tasks on a few pools, as in several processes: each key has one winner, and all
/// see its answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s14_u01_u30_one_winner_for_each_key() {
    let file = File::new();
    let mut stores = Vec::new();
    for _ in 0..4 {
        stores.push(file.store().await);
    }
    for round in 0..10 {
        let tasks: Vec<_> = (0..64)
            .map(|n: usize| {
                let store = stores[n % stores.len()].clone();
                tokio::spawn(async move {
                    match store.claim(&key(round), &request()).await.unwrap() {
                        Claim::Claimed(claimed) => {
                            let (key, answer) = (key(round), answer(n.to_string()));
                            let completed = store.complete(&key, &claimed.lease, &answer, TTL);
                            completed.await.unwrap();
                            (true, answer)
                        }
                        Claim::InProgress { token } => {
                            let found = store.wait(&key(round), token).await.unwrap();
                            (false, found.unwrap().record.payload.unwrap())
                        }
                        Claim::Completed(payload) => (false, payload),
                        other => panic!("{other:?}"),
                    }
                })
            })
            .collect();
        let done = soon(join_all(tasks)).await;
        let done: Vec<_> = done.into_iter().map(Result::unwrap).collect();
        let won: Vec<_> = done.iter().filter(|(won, _)| *won).collect();
        assert_eq!(won.len(), 1);
        assert!(done.iter().all(|(_, payload)| *payload == won[0].1));
    }
}

/// P8: a pool without a free connection is a store that cannot be asked, and so is a closed one.
#[tokio::test]
async fn p8_without_a_connection_it_is_unavailable() {
    let file = File::new();
    let pool = sqlx::sqlite::SqlitePoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_secs(1))
        .connect_with(file.options())
        .await
        .unwrap();
    let store = SqliteStore::new(pool);
    store.migrate().await.unwrap();
    let held = store.pool().acquire().await.unwrap();
    is_unavailable(store.claim(&key("k"), &request()).await);
    is_unavailable(store.get(&key("k")).await);
    drop(held);
    claim(&store, "k").await;
    store.pool().close().await;
    is_unavailable(store.claim(&key("k"), &request()).await);
    is_unavailable(store.forget(&key("k")).await);
}
