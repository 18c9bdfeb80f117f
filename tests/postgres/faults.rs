//! A server that does not answer, or says no.

use std::{error::Error, fmt::Debug, time::Duration};

use sqlx::{AssertSqlSafe, PgPool, postgres::PgPoolOptions};
use tokio::time::timeout;
use tower_idempotency::{Claim, PostgresStore, Store, StoreError};

use crate::{
    servers::postgres::PostgresServer,
    support::{LEASE, Own, TTL, answer, builder, claimed, key, request, server, soon},
};

/// The source of an error that says that the store could not be asked.
fn unavailable<T: Debug>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Unavailable { source, .. }) => source.to_string(),
        other => panic!("should be unavailable: {other:?}"),
    }
}

async fn pool_with(server: &PostgresServer, settings: &[(&str, &str)]) -> PgPool {
    let options = server.options().options(settings.iter().copied());
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_secs(20))
        .connect_with(options);
    pool.await.unwrap()
}

/// P8: no free connection within the pool's time is no answer, and nothing was done.
#[tokio::test]
async fn p8_an_exhausted_pool_is_unavailable() {
    let own = Own::new(1).await;
    let pool = PgPoolOptions::new()
        .max_connections(1)
        .acquire_timeout(Duration::from_millis(100))
        .connect_with(server().options())
        .await
        .unwrap();
    let store = builder(&pool, &own.schema).build();
    let taken = pool.acquire().await.unwrap();
    let told = unavailable(store.claim(&key("k"), &request()).await);
    assert!(told.contains("timed out"), "{told}");
    unavailable(store.get(&key("k")).await);
    drop(taken);
    claimed(&store, &key("k")).await;
}

/// P8: a connection that the server ended is one error where the pool does not look, and none where
/// it does.
#[tokio::test]
async fn p8_an_ended_connection_is_replaced() {
    let own = Own::new(1).await;
    let key = key("k");
    let lease = claimed(&own.store, &key).await.lease;
    for looks in [true, false] {
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .test_before_acquire(looks)
            .connect_with(server().options())
            .await
            .unwrap();
        let store = builder(&pool, &own.schema).build();
        store.renew(&key, &lease, LEASE, TTL, None).await.unwrap();
        let id: i32 = sqlx::query_scalar("SELECT pg_backend_pid()")
            .fetch_one(&pool)
            .await
            .unwrap();
        // At rest: what the pool does when it takes the connection back is done.
        drop(pool.acquire().await.unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
        let end = "SELECT pg_terminate_backend($1, 30000)";
        sqlx::query(end).bind(id).execute(&own.pool).await.unwrap();
        let renewed = store.renew(&key, &lease, LEASE, TTL, None).await;
        if looks {
            renewed.unwrap();
        } else {
            unavailable(renewed);
        }
        store.renew(&key, &lease, LEASE, TTL, None).await.unwrap();
    }
}

/// P2, S17: what was acknowledged outlives a crash of the server; and requests are served again by
/// the same pool once it is back.
#[tokio::test(flavor = "multi_thread")]
async fn p2_s17_records_outlive_a_crash() {
    let mut server = PostgresServer::with(&["fsync=on"]);
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(Duration::from_secs(5))
        .connect_with(server.options())
        .await
        .unwrap();
    let store = PostgresStore::new(pool);
    store.migrate().await.unwrap();
    let (done, running) = (key("done"), key("running"));
    let lease = claimed(&store, &done).await.lease;
    store.complete(&done, &lease, &answer(), TTL).await.unwrap();
    let lease = claimed(&store, &running).await.lease;

    server.kill();
    unavailable(soon(store.claim(&done, &request())).await);
    unavailable(soon(store.complete(&running, &lease, &answer(), TTL)).await);
    server.restart();
    let found = soon(store.claim(&done, &request())).await.unwrap();
    assert_eq!(found, Claim::Completed(answer()));
    store
        .complete(&running, &lease, &answer(), TTL)
        .await
        .unwrap();

    // The same over an orderly stop.
    server.stop();
    unavailable(soon(store.get(&done)).await);
    server.restart();
    for key in [&done, &running] {
        let found = soon(store.claim(key, &request())).await.unwrap();
        assert_eq!(found, Claim::Completed(answer()));
    }
}

/// P8: a frozen server answers nothing: calls are given up by their callers, and the pool serves
/// again when it thaws. What was given up took effect or did not, and can be sent again.
#[tokio::test(flavor = "multi_thread")]
async fn p8_a_frozen_server_thaws() {
    let server = PostgresServer::start();
    let pool = PgPoolOptions::new()
        .max_connections(2)
        .acquire_timeout(Duration::from_millis(500))
        .connect_with(server.options())
        .await
        .unwrap();
    let store = PostgresStore::new(pool);
    store.migrate().await.unwrap();
    let key = key("k");
    let request = request();
    let deadline = Duration::from_millis(300);
    server.freeze();
    for _ in 0..2 {
        let given_up = timeout(deadline, store.claim(&key, &request)).await;
        given_up.unwrap_err();
    }
    // All connections are waiting for an answer now.
    unavailable(soon(store.claim(&key, &request)).await);
    server.thaw();
    let granted = soon(async {
        loop {
            if let Ok(granted) = store.claim(&key, &request).await {
                return granted;
            }
        }
    });
    let Claim::Claimed(granted) = granted.await else {
        panic!("the same owner is granted again");
    };
    assert_eq!(granted.lease.attempt, 1);
    store
        .complete(&key, &granted.lease, &answer(), TTL)
        .await
        .unwrap();
}

/// P8, U19: an error of the server is told with its code and message, never with the row that it
/// quotes.
#[tokio::test]
async fn p8_u19_an_error_names_no_key() {
    let own = Own::new(1).await;
    own.run("ALTER TABLE {t} ADD CONSTRAINT full_moon CHECK (attempt < 1)")
        .await;
    let error = own
        .store
        .claim(&key("s3cret"), &request())
        .await
        .unwrap_err();
    let mut shown = format!("{error} {error:?}");
    let mut source = error.source();
    while let Some(cause) = source {
        shown.push_str(&format!(" {cause} {cause:?}"));
        source = cause.source();
    }
    assert!(
        shown.contains("23514") && shown.contains("full_moon"),
        "{shown}"
    );
    assert!(
        !shown.contains("s3cret") && !shown.contains("caller"),
        "{shown}"
    );
    // The server's own log has it, which shows that there was something to hide.
    assert!(server().log().contains("s3cret"));
}

/// P8: a server that only reads grants nothing, and says why; operators can look.
#[tokio::test]
async fn p8_a_read_only_server_grants_nothing() {
    let own = Own::new(1).await;
    let lease = claimed(&own.store, &key("done")).await.lease;
    own.store
        .complete(&key("done"), &lease, &answer(), TTL)
        .await
        .unwrap();
    let pool = pool_with(server(), &[("default_transaction_read_only", "on")]).await;
    let store = builder(&pool, &own.schema).build();
    let told = unavailable(store.claim(&key("new"), &request()).await);
    assert!(told.contains("25006"), "{told}");
    assert!(store.get(&key("done")).await.unwrap().is_some());
}

/// P8: time-outs of the server's are errors like others, and the next call works.
#[tokio::test]
async fn p8_the_servers_time_outs_are_unavailable() {
    let own = Own::new(2).await;
    let key = key("k");
    let lease = claimed(&own.store, &key).await.lease;
    for (setting, code) in [("lock_timeout", "55P03"), ("statement_timeout", "57014")] {
        let pool = pool_with(server(), &[(setting, "100")]).await;
        let store = builder(&pool, &own.schema).build();
        let mut transaction = own.pool.begin().await.unwrap();
        let lock = format!("SELECT FROM {} FOR UPDATE", own.table());
        sqlx::query(AssertSqlSafe(lock))
            .execute(&mut *transaction)
            .await
            .unwrap();
        let told = unavailable(soon(store.renew(&key, &lease, LEASE, TTL, None)).await);
        assert!(told.contains(code), "{told}");
        transaction.rollback().await.unwrap();
        store.renew(&key, &lease, LEASE, TTL, None).await.unwrap();
    }
}

/// P9: a full disk is told as such.
#[tokio::test]
async fn p9_a_full_disk_is_full() {
    let own = Own::new(1).await;
    let schema = &own.schema;
    let function = format!(
        "CREATE FUNCTION {schema}.refuse() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'no space left' USING ERRCODE = 'disk_full'; END $$"
    );
    own.run(&function).await;
    let trigger =
        format!("CREATE TRIGGER refuse BEFORE INSERT ON {{t}} EXECUTE FUNCTION {schema}.refuse()");
    own.run(&trigger).await;
    let error = own.store.claim(&key("k"), &request()).await.unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
}
