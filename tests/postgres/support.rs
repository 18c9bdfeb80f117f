//! A server for all cases, and a schema for each.

use std::{future::Future, sync::OnceLock, time::Duration};

use sqlx::{AssertSqlSafe, PgPool};
use tower_idempotency::{
    Claim, ClaimRequest, Claimed, Fingerprint, OwnerId, Payload, PostgresStore, Store, StoreKey,
    store::PostgresStoreBuilder,
};

use crate::servers::postgres::PostgresServer;

pub(crate) const LEASE: Duration = Duration::from_secs(30);
pub(crate) const TTL: Duration = Duration::from_secs(3600);

/// The server of all cases that do it no harm.
pub(crate) fn server() -> &'static PostgresServer {
    static SERVER: OnceLock<PostgresServer> = OnceLock::new();
    SERVER.get_or_init(PostgresServer::start)
}

/// A schema of a case's own, without a table.
pub(crate) async fn schema(pool: &PgPool) -> String {
    let name = server().new_name();
    let create = format!("CREATE SCHEMA {name}");
    sqlx::query(AssertSqlSafe(create))
        .execute(pool)
        .await
        .unwrap();
    name
}

/// A store of a case's own, and the pool and schema that it is in.
pub(crate) struct Own {
    pub(crate) store: PostgresStore,
    pub(crate) pool: PgPool,
    pub(crate) schema: String,
}

impl Own {
    pub(crate) async fn new(connections: u32) -> Self {
        let pool = server().pool(connections).await;
        let schema = schema(&pool).await;
        let store = builder(&pool, &schema).build();
        store.migrate().await.unwrap();
        Self {
            store,
            pool,
            schema,
        }
    }

    pub(crate) fn table(&self) -> String {
        format!("{}.idempotency_records", self.schema)
    }

    /// Runs a statement in which `{t}` is the table.
    pub(crate) async fn run(&self, sql: &str) -> u64 {
        let sql = sql.replace("{t}", &self.table());
        let done = sqlx::query(AssertSqlSafe(sql)).execute(&self.pool).await;
        done.unwrap().rows_affected()
    }

    pub(crate) async fn count(&self, condition: &str) -> i64 {
        let sql = format!("SELECT count(*) FROM {} WHERE {condition}", self.table());
        let count = sqlx::query_scalar(AssertSqlSafe(sql)).fetch_one(&self.pool);
        count.await.unwrap()
    }
}

pub(crate) fn builder(pool: &PgPool, schema: &str) -> PostgresStoreBuilder {
    PostgresStore::builder(pool.clone()).schema(schema).unwrap()
}

pub(crate) fn key(name: &str) -> StoreKey {
    StoreKey::new("idem", "caller", "endpoint", name)
}

pub(crate) fn fingerprint(body: &str) -> Fingerprint {
    let mut hasher = Fingerprint::hasher("t/1");
    hasher.field(body);
    hasher.finish()
}

pub(crate) fn request() -> ClaimRequest {
    ClaimRequest {
        fingerprint: fingerprint("body"),
        owner: OwnerId::random(),
        lease: LEASE,
        ttl: TTL,
        take_over: true,
    }
}

pub(crate) fn answer() -> Payload {
    Payload::new(201, "answer".into())
}

pub(crate) async fn claimed(store: &impl Store, key: &StoreKey) -> Claimed {
    claimed_as(store, key, &request()).await
}

pub(crate) async fn claimed_as(
    store: &impl Store,
    key: &StoreKey,
    request: &ClaimRequest,
) -> Claimed {
    match store.claim(key, request).await.unwrap() {
        Claim::Claimed(claimed) => claimed,
        other => panic!("not granted: {other:?}"),
    }
}

/// Fails the test where something does not end.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    let limit = tokio::time::timeout(Duration::from_secs(60), future);
    limit.await.expect("it takes too long")
}
