//! The pairs that are meant to be used, on their servers: memory before Redis, Redis before
//! PostgreSQL, memory before SQLite.

use std::{
    future::ready,
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    time::Duration,
};

use redis::{Client, aio::MultiplexedConnection};
use sqlx::AssertSqlSafe;
use tempfile::TempDir;
use tower_idempotency::{
    MemoryStore, PostgresStore, RedisStore, SqliteStore, Store, Tiered,
    testing::{differential, store::Fixture},
};

use crate::{
    copies,
    servers::{
        postgres::PostgresServer,
        redis::{RedisServer, connection},
    },
    support::PATIENCE,
};

/// Records in a database of their own.
async fn redis() -> RedisStore<MultiplexedConnection> {
    static SERVER: OnceLock<RedisServer> = OnceLock::new();
    static DATABASE: AtomicU32 = AtomicU32::new(0);
    let server = SERVER.get_or_init(|| RedisServer::for_all(&["--databases", "5000"]));
    let database = DATABASE.fetch_add(1, SeqCst);
    let client = Client::open(format!("{}/{database}", server.url())).unwrap();
    RedisStore::new(connection(&client).await).with_client(client)
}

/// Records in a schema of their own.
async fn postgres() -> PostgresStore {
    static SERVER: OnceLock<PostgresServer> = OnceLock::new();
    let server = SERVER.get_or_init(PostgresServer::start);
    let (pool, schema) = (server.pool(8).await, server.new_name());
    let create = sqlx::query(AssertSqlSafe(format!("CREATE SCHEMA {schema}")));
    create.execute(&pool).await.unwrap();
    let store = PostgresStore::builder(pool)
        .schema(&schema)
        .unwrap()
        .build();
    store.migrate().await.unwrap();
    store
}

/// Records in a file of their own, which goes with the folder.
async fn sqlite() -> (SqliteStore, TempDir) {
    let folder = TempDir::new().unwrap();
    let store = SqliteStore::open(folder.path().join("records.db")).await;
    let store = store.unwrap();
    store.migrate().await.unwrap();
    (store, folder)
}

/// Near keeps what it is given for as long as it ever may, and a busy machine is no outage.
fn fixture<N: Store, F: Store>(
    near: N,
    far: F,
    advance: impl Fn(Duration) + Send + Sync + 'static,
) -> Fixture<Tiered<N, F>> {
    let tiered = Tiered::new(near, far)
        .near_for(Duration::MAX)
        .near_timeout(PATIENCE);
    let fixture = Fixture::new(tiered, move |by| {
        advance(by);
        ready(())
    });
    // Each store is asked what it makes of damage where it stands alone.
    fixture.incorruptible()
}

async fn memory_before_redis() -> Fixture<impl Store> {
    let (near, far) = (MemoryStore::new(), redis().await);
    let clocks = (near.clone(), far.clone());
    fixture(near, far, move |by| {
        clocks.0.advance_clock(by);
        clocks.1.advance_clock(by);
    })
}

async fn redis_before_postgres() -> Fixture<impl Store> {
    let (near, far) = (redis().await, postgres().await);
    let clocks = (near.clone(), far.clone());
    fixture(near, far, move |by| {
        clocks.0.advance_clock(by);
        clocks.1.advance_clock(by);
    })
}

async fn memory_before_sqlite() -> Fixture<impl Store> {
    let (near, (far, folder)) = (MemoryStore::new(), sqlite().await);
    let clocks = (near.clone(), far.clone());
    let fixture = fixture(near, far, move |by| {
        clocks.0.advance_clock(by);
        clocks.1.advance_clock(by);
    });
    fixture.with_guard(folder)
}

mod memory_and_redis {
    tower_idempotency::store_conformance!(super::memory_before_redis().await);
}

mod redis_and_postgres {
    tower_idempotency::store_conformance!(super::redis_before_postgres().await);
}

mod memory_and_sqlite {
    tower_idempotency::store_conformance!(super::memory_before_sqlite().await);
}

/// S19: random operations, against the machine.
#[tokio::test]
async fn s19_memory_before_redis_agrees_with_the_machine() {
    differential::run(memory_before_redis).await;
}

/// S19: the same.
#[tokio::test]
async fn s19_redis_before_postgres_agrees_with_the_machine() {
    differential::run(redis_before_postgres).await;
}

/// S19: the same.
#[tokio::test]
async fn s19_memory_before_sqlite_agrees_with_the_machine() {
    differential::run(memory_before_sqlite).await;
}

/// S19: far is not called for a replay.
#[tokio::test]
async fn s19_replays_of_each_pair_are_near() {
    copies::replays_are_near(MemoryStore::new(), redis().await).await;
    copies::replays_are_near(redis().await, postgres().await).await;
    let (far, _folder) = sqlite().await;
    copies::replays_are_near(MemoryStore::new(), far).await;
}
