//! The servers, and the stores over them.

use std::{
    net::SocketAddr,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

use redis::{Client, aio::MultiplexedConnection, cluster::ClusterClient};
use sqlx::{PgPool, SqlitePool, postgres::PgPoolOptions};
use tempfile::TempDir;
use tower_idempotency::{MemoryStore, PostgresStore, RedisStore, SqliteStore, Store, Tiered};

use super::{
    servers::{
        postgres::{PostgresServer, options_for},
        redis::{RedisCluster, RedisServer, connection},
    },
    support::service,
};

/// All that is started, and where it is.
pub(crate) struct Servers {
    redis: RedisServer,
    redis_synced: RedisServer,
    cluster: RedisCluster,
    postgres: PostgresServer,
    postgres_unsynced: PostgresServer,
    folder: TempDir,
    memory: MemoryStore,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Memory,
    Redis,
    RedisSynced,
    RedisCluster,
    Postgres,
    PostgresUnsynced,
    Sqlite,
    MemoryThenRedis,
    MemoryThenPostgres,
}

impl Kind {
    pub(crate) const ALL: [Self; 9] = [
        Self::Memory,
        Self::Redis,
        Self::RedisSynced,
        Self::RedisCluster,
        Self::Postgres,
        Self::PostgresUnsynced,
        Self::Sqlite,
        Self::MemoryThenRedis,
        Self::MemoryThenPostgres,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Redis => "Redis",
            Self::RedisSynced => "Redis, `appendfsync everysec`",
            Self::RedisCluster => "Redis Cluster",
            Self::Postgres => "PostgreSQL",
            Self::PostgresUnsynced => "PostgreSQL, `fsync = off`",
            Self::Sqlite => "SQLite",
            Self::MemoryThenRedis => "memory before Redis",
            Self::MemoryThenPostgres => "memory before PostgreSQL",
        }
    }
}

/// A store, and the connection that it shares with its floors.
pub(crate) struct Side {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) floors: Vec<Floor>,
}

/// The least that a server does.
pub(crate) enum Floor {
    Ping(MultiplexedConnection),
    PostgresSelect(PgPool),
    PostgresInsert(PgPool, Vec<u8>),
    SqliteSelect(SqlitePool),
    SqliteInsert(SqlitePool, Vec<u8>),
}

impl Floor {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ping(_) => "PING",
            Self::PostgresSelect(_) | Self::SqliteSelect(_) => "SELECT 1",
            Self::PostgresInsert(..) | Self::SqliteInsert(..) => "INSERT",
        }
    }

    pub(crate) async fn run(&mut self) {
        match self {
            Self::Ping(connection) => {
                let _: String = redis::cmd("PING")
                    .query_async(connection)
                    .await
                    .expect("PONG");
            }
            Self::PostgresSelect(pool) => {
                let row = sqlx::query("SELECT 1").fetch_one(&*pool);
                row.await.expect("a row");
            }
            Self::PostgresInsert(pool, body) => {
                let insert = sqlx::query("INSERT INTO floor (body) VALUES ($1)");
                let done = insert.bind(body.clone()).execute(&*pool);
                done.await.expect("a row");
            }
            Self::SqliteSelect(pool) => {
                let row = sqlx::query("SELECT 1").fetch_one(&*pool);
                row.await.expect("a row");
            }
            Self::SqliteInsert(pool, body) => {
                let insert = sqlx::query("INSERT INTO floor (body) VALUES (?1)");
                let done = insert.bind(body.clone()).execute(&*pool);
                done.await.expect("a row");
            }
        }
    }
}

impl Servers {
    pub(crate) fn start() -> Self {
        Self {
            redis: RedisServer::start(&[]),
            redis_synced: RedisServer::start(&["--appendonly", "yes"]),
            cluster: RedisCluster::start(),
            postgres: PostgresServer::with(&[]),
            postgres_unsynced: PostgresServer::with(&["fsync=off"]),
            folder: TempDir::with_prefix("stores-").expect("a folder"),
            memory: service::store(),
        }
    }

    /// Makes the tables: those of the stores, and those of the floors.
    pub(crate) async fn migrate(&self) {
        for server in [&self.postgres, &self.postgres_unsynced] {
            let pool = server.pool(1).await;
            let store = PostgresStore::new(pool.clone());
            store.migrate().await.expect("a table");
            let table = "CREATE TABLE floor (id bigserial PRIMARY KEY, body bytea NOT NULL)";
            sqlx::raw_sql(table).execute(&pool).await.expect("a table");
        }
        let store = self.sqlite().await;
        store.migrate().await.expect("a table");
        let table = "CREATE TABLE floor (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT";
        let table = sqlx::raw_sql(table).execute(store.pool()).await;
        table.expect("a table");
    }

    /// One for each server task of its own. Floors write `body`.
    pub(crate) async fn open(&self, kind: Kind, connections: u32, body: &[u8]) -> Side {
        let body = || body.to_vec();
        match kind {
            Kind::Memory => Side {
                store: Arc::new(self.memory.clone()),
                floors: Vec::new(),
            },
            Kind::Redis => redis(&self.redis.client()).await,
            Kind::RedisSynced => redis(&self.redis_synced.client()).await,
            Kind::RedisCluster => {
                let client = ClusterClient::new(self.cluster.urls()).expect("URLs");
                let connection = client.get_async_connection().await.expect("a connection");
                Side {
                    store: Arc::new(RedisStore::new(connection)),
                    floors: Vec::new(),
                }
            }
            Kind::Postgres => postgres(&self.postgres, connections, body()).await,
            Kind::PostgresUnsynced => postgres(&self.postgres_unsynced, connections, body()).await,
            Kind::Sqlite => {
                let store = self.sqlite().await;
                let pool = store.pool().clone();
                Side {
                    store: Arc::new(store),
                    floors: vec![
                        Floor::SqliteSelect(pool.clone()),
                        Floor::SqliteInsert(pool, body()),
                    ],
                }
            }
            Kind::MemoryThenRedis => before(redis(&self.redis.client()).await),
            Kind::MemoryThenPostgres => before(postgres(&self.postgres, connections, body()).await),
        }
    }

    async fn sqlite(&self) -> SqliteStore {
        let file = self.folder.path().join("records.db");
        SqliteStore::open(file).await.expect("a file")
    }

    pub(crate) fn redis(&self) -> SocketAddr {
        self.redis.address()
    }

    pub(crate) fn postgres(&self) -> &PostgresServer {
        &self.postgres
    }
}

async fn redis(client: &Client) -> Side {
    let connection = connection(client).await;
    Side {
        store: Arc::new(RedisStore::new(connection.clone())),
        floors: vec![Floor::Ping(connection)],
    }
}

async fn postgres(server: &PostgresServer, connections: u32, body: Vec<u8>) -> Side {
    on_pool(server.pool(connections).await, body)
}

fn on_pool(pool: PgPool, body: Vec<u8>) -> Side {
    Side {
        store: Arc::new(PostgresStore::new(pool.clone())),
        floors: vec![
            Floor::PostgresSelect(pool.clone()),
            Floor::PostgresInsert(pool, body),
        ],
    }
}

fn before(far: Side) -> Side {
    Side {
        store: Arc::new(Tiered::new(service::store(), far.store)),
        ..far
    }
}

/// One connection, over what stands before the server.
pub(crate) async fn redis_at(address: SocketAddr) -> Side {
    redis(&Client::open(format!("redis://{address}")).expect("a URL")).await
}

/// The same, which the pool tests before each use, or not.
pub(crate) async fn postgres_at(address: SocketAddr, tested: bool) -> Side {
    let options = PgPoolOptions::new()
        .max_connections(1)
        .test_before_acquire(tested);
    let pool = options.connect_with(options_for(address)).await;
    on_pool(pool.expect("a pool"), Vec::new())
}

/// Numbers of keys that nobody used, over all stores.
pub(crate) fn unused() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}
