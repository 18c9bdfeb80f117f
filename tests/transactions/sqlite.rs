//! A file of its own.

use std::{sync::Arc, time::Duration};

use sqlx::{Connection as _, SqliteConnection, SqlitePool};
use tempfile::TempDir;
use tower_idempotency::SqliteStore;

use crate::database::Database;

#[derive(Clone)]
pub(crate) struct Sqlite {
    pub(crate) store: SqliteStore,
    path: String,
    /// None where it is another handle's.
    _folder: Option<Arc<TempDir>>,
}

impl Sqlite {
    pub(crate) fn pool(&self) -> &SqlitePool {
        self.store.pool()
    }

    pub(crate) async fn begin_immediate(&self) -> sqlx::Transaction<'static, sqlx::Sqlite> {
        self.pool().begin_with("BEGIN IMMEDIATE").await.unwrap()
    }
}

impl Database for Sqlite {
    type Store = SqliteStore;
    type Transaction = sqlx::Transaction<'static, sqlx::Sqlite>;

    const KIND: &str = "sqlite";

    async fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("transfers.db");
        let store = SqliteStore::open(&path).await.unwrap();
        store.migrate().await.unwrap();
        let tables = "CREATE TABLE transfers (key TEXT NOT NULL, note TEXT NOT NULL); \
             CREATE TABLE accounts (id INTEGER PRIMARY KEY); \
             CREATE TABLE entries (account INTEGER \
               REFERENCES accounts DEFERRABLE INITIALLY DEFERRED)";
        let made = sqlx::raw_sql(tables).execute(store.pool()).await;
        made.unwrap();
        Self {
            store,
            path: path.to_str().unwrap().to_owned(),
            _folder: Some(Arc::new(folder)),
        }
    }

    async fn elsewhere(&self) -> Self {
        Self::new().await
    }

    fn place(&self) -> String {
        self.path.clone()
    }

    async fn at(place: &str) -> Self {
        Self {
            store: SqliteStore::open(place).await.unwrap(),
            path: place.to_owned(),
            _folder: None,
        }
    }

    fn store(&self) -> &SqliteStore {
        &self.store
    }

    fn advance_clock(&self, by: Duration) {
        self.store.advance_clock(by);
    }

    async fn begin(&self) -> Result<Self::Transaction, sqlx::Error> {
        self.pool().begin().await
    }

    async fn insert(
        &self,
        connection: &mut SqliteConnection,
        key: &str,
        note: &str,
    ) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO transfers VALUES (?, ?)");
        let done = insert.bind(key).bind(note).execute(connection).await;
        done.map(drop)
    }

    async fn insert_what_is_refused(
        &self,
        connection: &mut SqliteConnection,
    ) -> Result<(), sqlx::Error> {
        let insert = sqlx::query("INSERT INTO entries VALUES (7)");
        insert.execute(connection).await.map(drop)
    }

    async fn insert_and_undo(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        let mut savepoint = connection.begin().await?;
        self.insert(&mut savepoint, "undone", "undone").await
    }

    async fn rows(&self) -> Vec<(String, String)> {
        let rows = sqlx::query_as("SELECT key, note FROM transfers ORDER BY key, note");
        rows.fetch_all(self.pool()).await.unwrap()
    }
}
