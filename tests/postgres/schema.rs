//! The table: how it is made, named and read.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, Row, postgres::PgPoolOptions};
use tokio::sync::Barrier;
use tower_idempotency::{Claim, PostgresStore, Store, StoreError, StoreKey};

use crate::support::{Own, TTL, answer, builder, claimed, key, request, schema, server, soon};

/// S18: fifty processes that start at once make one table, whatever their isolation level.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn s18_many_migrate_at_once() {
    let pool = server().pool(1).await;
    let schema = schema(&pool).await;
    let barrier = Arc::new(Barrier::new(50));
    let tasks: Vec<_> = (0..50)
        .map(|n| {
            let (barrier, schema) = (Arc::clone(&barrier), schema.clone());
            tokio::spawn(async move {
                let level = ["read committed", "serializable"][n % 2];
                let options = server().options();
                let options = options.options([("default_transaction_isolation", level)]);
                let pool = PgPoolOptions::new()
                    .max_connections(1)
                    .connect_with(options);
                let store = builder(&pool.await.unwrap(), &schema).build();
                barrier.wait().await;
                store.migrate().await
            })
        })
        .collect();
    for task in tasks {
        soon(task).await.unwrap().unwrap();
    }
    let store = builder(&pool, &schema).build();
    claimed(&store, &key("k")).await;
    store.migrate().await.unwrap();
    assert!(store.get(&key("k")).await.unwrap().is_some());
}

/// S17, S18: the text of the schema makes what the store uses: one row for each scope, endpoint and
/// key, and an index on expiry. It can be run again.
#[tokio::test]
async fn s17_s18_the_schema_can_be_run_by_others() {
    let pool = server().pool(1).await;
    let schema = schema(&pool).await;
    let store = builder(&pool, &schema).build();
    for _ in 0..2 {
        let run = sqlx::raw_sql(AssertSqlSafe(store.schema())).execute(&pool);
        run.await.unwrap();
    }
    store.migrate().await.unwrap();
    let indices = "SELECT indexdef FROM pg_indexes WHERE schemaname = $1 ORDER BY 1";
    let indices: Vec<String> = sqlx::query_scalar(indices)
        .bind(&schema)
        .fetch_all(&pool)
        .await
        .unwrap();
    assert_eq!(indices.len(), 2);
    assert!(indices[0].contains("(expires_at)"), "{indices:?}");
    let unique = "(prefix, scope, endpoint, idempotency_key)";
    assert!(indices[1].starts_with("CREATE UNIQUE") && indices[1].ends_with(unique));

    let key = StoreKey::new("idem", "merchant", "4f2a", "order_123_payment_1");
    let lease = claimed(&store, &key).await.lease;
    let row = async || {
        let row = "SELECT concat_ws(' ', prefix, scope, endpoint, idempotency_key, status, entry, \
             attempt, response_code, convert_from(response_body, 'UTF8'), \
             expires_at - created_at > interval '59 minutes') FROM ";
        let row = format!("{row}{schema}.idempotency_records");
        let row = sqlx::query_scalar(AssertSqlSafe(row)).fetch_one(&pool);
        row.await.unwrap()
    };
    let named = "idem merchant 4f2a order_123_payment_1";
    let text: String = row().await;
    assert_eq!(text, format!("{named} in_progress first 1 t"));
    store.fail(&key, &lease, TTL).await.unwrap();
    assert_eq!(row().await, format!("{named} failed first 1 t"));
    let lease = claimed(&store, &key).await.lease;
    assert_eq!(row().await, format!("{named} in_progress retry 2 t"));
    store.complete(&key, &lease, &answer(), TTL).await.unwrap();
    assert_eq!(
        row().await,
        format!("{named} completed retry 2 201 answer t")
    );
}

/// Who may not make tables may use the one that is there.
#[tokio::test]
async fn s18_no_rights_are_needed_where_the_table_is_there() {
    let own = Own::new(1).await;
    let role = format!("{}_role", own.schema);
    for grant in [
        format!("CREATE ROLE {role} LOGIN"),
        format!("GRANT USAGE ON SCHEMA {} TO {role}", own.schema),
        format!("GRANT SELECT, INSERT, UPDATE, DELETE ON {{t}} TO {role}"),
    ] {
        own.run(&grant).await;
    }
    let options = server().options().username(&role);
    let pool = PgPoolOptions::new().connect_with(options).await.unwrap();
    let store = builder(&pool, &own.schema).build();
    store.migrate().await.unwrap();
    let lease = claimed(&store, &key("k")).await.lease;
    store
        .complete(&key("k"), &lease, &answer(), TTL)
        .await
        .unwrap();
    assert!(store.forget(&key("k")).await.unwrap());

    let other = builder(&pool, &own.schema).table("other").unwrap().build();
    let told = format!("{:?}", other.migrate().await.unwrap_err());
    assert!(told.contains("permission denied"), "{told}");
}

/// U18: a table of another layout is told of, and left alone.
#[tokio::test]
async fn u18_another_layout_is_told_of() {
    let own = Own::new(1).await;
    own.run("ALTER TABLE {t} ALTER version SET DEFAULT 2").await;
    let error = own.store.migrate().await.unwrap_err();
    let StoreError::Corrupt { source, .. } = error else {
        panic!("{error:?}");
    };
    let told = source.to_string();
    assert!(
        told.contains("layout 2, and this build knows only 1"),
        "{told}"
    );
    own.run("ALTER TABLE {t} DROP version").await;
    let error = own.store.migrate().await.unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

/// A missing table, or a missing schema, is an error that says so.
#[tokio::test]
async fn p8_a_missing_table_is_told_of() {
    let pool = server().pool(1).await;
    let store = builder(&pool, "nowhere").build();
    for error in [
        store.claim(&key("k"), &request()).await.unwrap_err(),
        store.migrate().await.unwrap_err(),
    ] {
        let StoreError::Unavailable { source, .. } = error else {
            panic!("{error:?}");
        };
        let told = source.to_string();
        assert!(
            told.contains("nowhere") && told.contains("SQLSTATE"),
            "{told}"
        );
    }
}

/// I11: a name is checked, quoted, and taken as it is written. Two tables are two stores.
#[tokio::test]
async fn i11_names_are_names() {
    let pool = server().pool(1).await;
    for name in [
        "",
        "a\"; DROP TABLE users; --",
        "a.b",
        "1st",
        &"x".repeat(51),
    ] {
        assert!(
            PostgresStore::builder(pool.clone()).table(name).is_err(),
            "{name}"
        );
        assert!(
            PostgresStore::builder(pool.clone()).schema(name).is_err(),
            "{name}"
        );
    }
    let schema = schema(&pool).await;
    let longest = "x".repeat(50);
    for table in ["Records", "records", "select", longest.as_str()] {
        let store = builder(&pool, &schema).table(table).unwrap().build();
        store.migrate().await.unwrap();
        store.migrate().await.unwrap();
        claimed(&store, &key("k")).await;
    }
    let tables = "SELECT count(*), count(*) FILTER (WHERE indexname LIKE '%expires_at') \
         FROM pg_indexes WHERE schemaname = $1";
    let tables = sqlx::query(tables)
        .bind(&schema)
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!((tables.get::<i64, _>(0), tables.get::<i64, _>(1)), (8, 4));
}

/// S20, I11, P9: any key is one row of its own: whatever characters, and whatever length.
#[tokio::test]
async fn s20_i11_p9_each_key_is_a_row_of_its_own() {
    let own = Own::new(1).await;
    let long = "ä".repeat(50_000);
    let names = [
        "",
        "#",
        "a\0b",
        "a\0",
        "'; --",
        "\u{1f511}",
        "%",
        &long,
        &long[2..],
        "a",
        "A",
    ];
    for name in names {
        let key = StoreKey::new("idem", "caller\0", "", name);
        let lease = claimed(&own.store, &key).await.lease;
        own.store
            .complete(&key, &lease, &answer(), TTL)
            .await
            .unwrap();
    }
    assert_eq!(own.count("true").await, names.len() as i64);
    for name in names {
        let key = StoreKey::new("idem", "caller\0", "", name);
        let found = own.store.claim(&key, &request()).await.unwrap();
        assert_eq!(found, Claim::Completed(answer()));
    }
    // Three of them stand as hashes.
    assert_eq!(own.count("idempotency_key LIKE '#%'").await, 5);
}

/// U19: neither the store nor its builder shows where it is connected to, or with what.
#[tokio::test]
async fn u19_debug_shows_no_password() {
    let url = "postgres://user:s3cret@db.internal/app";
    let pool = PgPoolOptions::new().connect_lazy(url).unwrap();
    let builder = PostgresStore::builder(pool);
    let shown = format!("{builder:?} {:?}", builder.clone().build());
    for secret in ["s3cret", "db.internal", "user"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert!(shown.contains("idempotency_records"));
}
