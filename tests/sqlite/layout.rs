//! The table: made by many at once, read by anyone.

use std::time::{Duration, SystemTime};

use futures::future::join_all;
use sqlx::{Executor, Row};
use tower_idempotency::{Claim, SqliteStore, Store, StoreKey};

use crate::support::*;

/// S17, S18: a row tells what it is to whoever reads the table.
#[tokio::test]
async fn s17_s18_a_row_is_readable() {
    let file = File::new();
    let store = file.store().await;
    let key = StoreKey::new("idem", "merchant", "4f2a", "order_123_payment_1");
    let asked = request();
    let Claim::Claimed(claimed) = store.claim(&key, &asked).await.unwrap() else {
        panic!("not granted");
    };
    let read = async || {
        let select = "SELECT *, hex(owner) AS shown, \
                      datetime(created_at / 1000000, 'unixepoch') AS created, \
                      (expires_at - lease_until) / 1000000 AS lives FROM idempotency_records";
        sqlx::query(select).fetch_one(store.pool()).await.unwrap()
    };
    let row = read().await;
    let text = |row: &sqlx::sqlite::SqliteRow, column| row.get::<String, _>(column);
    assert_eq!(text(&row, "prefix"), "idem");
    assert_eq!(text(&row, "scope"), "merchant");
    assert_eq!(text(&row, "endpoint"), "4f2a");
    assert_eq!(text(&row, "idempotency_key"), "order_123_payment_1");
    assert_eq!(text(&row, "status"), "in_progress");
    assert_eq!(text(&row, "hash_algorithm"), "t/1");
    assert_eq!(
        row.get::<Vec<u8>, _>("request_hash"),
        asked.fingerprint.digest()
    );
    assert_eq!(text(&row, "shown").to_lowercase(), asked.owner.to_string());
    assert_eq!(
        row.get::<i64, _>("fencing_token") as u64,
        claimed.lease.token.as_u64()
    );
    assert_eq!(row.get::<i64, _>("attempt"), 1);
    assert_eq!(text(&row, "entry"), "first");
    assert_eq!(row.get::<Option<Vec<u8>>, _>("checkpoint"), None);
    assert_eq!(row.get::<Option<i64>, _>("response_code"), None);
    assert_eq!(row.get::<i64, _>("lives"), 3600);
    assert_eq!(row.get::<i64, _>("version"), 1);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap();
    let created = Duration::from_micros(row.get::<i64, _>("created_at") as u64);
    assert!(created <= now && now - created < PATIENCE);
    assert!(text(&row, "created").starts_with("20"));

    store
        .complete(&key, &claimed.lease, &answer("paid"), TTL)
        .await
        .unwrap();
    let row = read().await;
    assert_eq!(text(&row, "status"), "completed");
    assert_eq!(row.get::<i64, _>("response_code"), 201);
    assert_eq!(row.get::<Vec<u8>, _>("response_body"), b"paid");
}

/// I11, S20: parts that SQL text or an index would not hold are hashed, and each stays itself.
#[tokio::test]
async fn s20_i11_unusual_keys_are_hashed() {
    let file = File::new();
    let store = file.store().await;
    let long = "x".repeat(100_000);
    for name in ["a\0b", "#x", long.as_str(), "'; DROP TABLE x --", "ü"] {
        complete(&store, name, name).await;
        let replay = store.claim(&key(name), &request()).await.unwrap();
        assert_eq!(replay, Claim::Completed(answer(name)));
    }
    let rows = sqlx::query_scalar("SELECT idempotency_key FROM idempotency_records");
    let rows: Vec<String> = rows.fetch_all(store.pool()).await.unwrap();
    assert_eq!(rows.iter().filter(|row| row.starts_with('#')).count(), 3);
    assert!(rows.iter().all(|row| row.len() <= 512));
}

/// S17: any number of processes start at once on a file that is not there yet.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s17_many_migrate_at_once() {
    for _ in 0..3 {
        let file = File::new();
        let starts = (0..20).map(|n| {
            let path = file.path();
            tokio::spawn(async move {
                let store = SqliteStore::open(path).await.unwrap();
                store.migrate().await.unwrap();
                complete(&store, n, "answer").await;
                store
            })
        });
        let stores = soon(join_all(starts)).await;
        assert_eq!(count(stores[0].as_ref().unwrap()).await, 20);
    }
}

/// S17: those who run their own migrations run this text, and need no rights to make tables.
#[tokio::test]
async fn s17_the_schema_can_be_run_by_hand() {
    let file = File::new();
    let pool = file.pool().await;
    let store = SqliteStore::new(pool.clone());
    is_unavailable(store.claim(&key("k"), &request()).await);
    for _ in 0..2 {
        let schema = sqlx::AssertSqlSafe(store.schema().to_owned());
        pool.execute(sqlx::raw_sql(schema)).await.unwrap();
    }
    complete(&store, "k", "answer").await;
    pool.close().await;
    let read_only = sqlx::SqlitePool::connect_with(file.options().read_only(true));
    let store = SqliteStore::new(read_only.await.unwrap());
    store.migrate().await.unwrap();
}

/// Another table of that name is told of, not used.
#[tokio::test]
async fn another_table_of_that_name_is_told_of() {
    let file = File::new();
    let pool = file.pool().await;
    pool.execute("CREATE TABLE idempotency_records (prefix TEXT, expires_at INTEGER)")
        .await
        .unwrap();
    let store = SqliteStore::new(pool);
    is_unavailable(store.migrate().await);
    is_unavailable(store.claim(&key("k"), &request()).await);
}

/// U25: two tables in one file have nothing to do with each other.
#[tokio::test]
async fn u25_tables_do_not_meddle() {
    let file = File::new();
    let store = file.store().await;
    let other = store.clone().with_table("Other_2").unwrap();
    other.migrate().await.unwrap();
    complete(&store, "k", "answer").await;
    assert_eq!(other.get(&key("k")).await.unwrap(), None);
    claim(&other, "k").await;
    for name in ["", "2x", "a b", "a\"b", "x;--", "ä"] {
        assert!(store.clone().with_table(name).is_err(), "{name}");
    }
}

/// P9: every look-up and every removal of what has expired goes by an index.
#[tokio::test]
async fn p9_statements_use_their_index() {
    let file = File::new();
    let store = file.store().await;
    for (statement, index) in [
        (
            "SELECT * FROM idempotency_records WHERE prefix = 'a' AND scope = 'b' \
             AND endpoint = 'c' AND idempotency_key = 'd'",
            "sqlite_autoindex_idempotency_records_1",
        ),
        (
            "SELECT rowid FROM idempotency_records WHERE expires_at <= 5 \
             ORDER BY expires_at LIMIT 8",
            "idempotency_records_expires_at",
        ),
    ] {
        let explain = format!("EXPLAIN QUERY PLAN {statement}");
        let plan = sqlx::query(sqlx::AssertSqlSafe(explain)).fetch_all(store.pool());
        let plan: Vec<String> = plan.await.unwrap().iter().map(|row| row.get(3)).collect();
        assert_eq!(plan.len(), 1, "{plan:?}");
        assert!(plan[0].contains(index), "{plan:?}");
    }
}

/// P2: what was answered is on the disk: every connection that `open` makes commits in full.
#[tokio::test]
async fn p2_commits_are_on_the_disk() {
    let file = File::new();
    let store = file.store().await;
    let mut connections = Vec::new();
    for _ in 0..3 {
        let mut connection = store.pool().acquire().await.unwrap();
        let mut pragma = async |sql: &'static str| -> String {
            let row = sqlx::query(sql).fetch_one(&mut *connection).await.unwrap();
            let number = row.try_get::<i64, _>(0).map(|number| number.to_string());
            number.unwrap_or_else(|_| row.get(0))
        };
        assert_eq!(pragma("PRAGMA journal_mode").await, "wal");
        assert_eq!(pragma("PRAGMA synchronous").await, "2", "FULL");
        assert_eq!(pragma("PRAGMA busy_timeout").await, "5000");
        connections.push(connection);
    }
}

/// U19: debug output names the table, and nothing that is in it or leads to it.
#[tokio::test]
async fn u19_debug_tells_the_table_only() {
    let file = File::new();
    let store = file.store().await;
    let shown = format!("{store:?}");
    assert_eq!(shown, "SqliteStore { table: \"idempotency_records\", .. }");
}
