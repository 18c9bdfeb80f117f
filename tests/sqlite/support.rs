//! Stores on files of their own, and what the tests ask of them.

use std::{future::Future, path::PathBuf, time::Duration};

use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions},
};
use tempfile::TempDir;
use tower_idempotency::{
    Claim, ClaimRequest, Fingerprint, Lease, OwnerId, Payload, SqliteStore, Store, StoreError,
    StoreKey,
};

pub(crate) const LEASE: Duration = Duration::from_secs(60);
pub(crate) const TTL: Duration = Duration::from_secs(3600);
/// After this a test counts as one that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A folder for one database. Removed at the end.
pub(crate) struct File(TempDir);

impl File {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("records.db")
    }

    /// A store on the file, whose table is there.
    pub(crate) async fn store(&self) -> SqliteStore {
        let store = SqliteStore::open(self.path()).await.unwrap();
        store.migrate().await.unwrap();
        store
    }

    pub(crate) fn options(&self) -> SqliteConnectOptions {
        SqliteConnectOptions::new()
            .filename(self.path())
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
    }

    /// A store that waits so long for a lock, on a pool of so many connections.
    pub(crate) async fn impatient(&self, busy: Duration, connections: u32) -> SqliteStore {
        let pool = SqlitePoolOptions::new()
            .max_connections(connections)
            .connect_with(self.options().busy_timeout(busy))
            .await
            .unwrap();
        let store = SqliteStore::new(pool);
        store.migrate().await.unwrap();
        store
    }

    /// Somebody else's connection.
    pub(crate) async fn pool(&self) -> SqlitePool {
        SqlitePool::connect_with(self.options()).await.unwrap()
    }
}

pub(crate) fn key(name: impl ToString) -> StoreKey {
    StoreKey::new("idem", "caller", "endpoint", &name.to_string())
}

pub(crate) fn request() -> ClaimRequest {
    ClaimRequest {
        fingerprint: Fingerprint::hasher("t/1").finish(),
        owner: OwnerId::random(),
        lease: LEASE,
        ttl: TTL,
        take_over: true,
    }
}

pub(crate) fn answer(text: impl Into<Vec<u8>>) -> Payload {
    Payload::new(201, text.into().into())
}

pub(crate) async fn claim(store: &SqliteStore, name: impl ToString) -> Lease {
    match store.claim(&key(name), &request()).await.unwrap() {
        Claim::Claimed(claimed) => claimed.lease,
        other => panic!("not granted: {other:?}"),
    }
}

pub(crate) async fn complete(store: &SqliteStore, name: impl ToString, text: &str) {
    let (key, answer) = (key(name.to_string()), answer(text));
    let lease = claim(store, name).await;
    store.complete(&key, &lease, &answer, TTL).await.unwrap();
}

pub(crate) async fn count(store: &SqliteStore) -> i64 {
    let rows = sqlx::query_scalar("SELECT count(*) FROM idempotency_records");
    rows.fetch_one(store.pool()).await.unwrap()
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, future).await;
    done.expect("it should have ended")
}

pub(crate) fn is_unavailable<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let unavailable = matches!(result, Err(StoreError::Unavailable { .. }));
    assert!(unavailable, "should be unavailable: {result:?}");
}

pub(crate) fn is_corrupt<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let corrupt = matches!(result, Err(StoreError::Corrupt { .. }));
    assert!(corrupt, "should be corrupt: {result:?}");
}

pub(crate) fn is_full<T: std::fmt::Debug>(result: Result<T, StoreError>) {
    let full = matches!(result, Err(StoreError::Full { .. }));
    assert!(full, "should be full: {result:?}");
}
