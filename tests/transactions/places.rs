//! Where else a transaction is committed: in axum, by a function, behind wrappers; and where it
//! cannot be: in another database, in a part of a larger transaction.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Extension, Router, response::IntoResponse, routing::post};
use http::StatusCode;
use sqlx::Connection;
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::{
    CheckpointError, CommitError, Committed, Execution, IdempotencyLayer, MemoryStore, Operation,
    Outcome, RunError, Scope, State, Store,
};

use crate::{
    bench::{
        Bench, Gate, Handled, commit, good, good_after, handler, kind, note, pay, read, request,
        soon, told,
    },
    database::Database,
    postgres::{Postgres, server},
    sqlite::Sqlite,
};

on_each_database!(
    p7_committed_is_an_answer_in_axum,
    s28_p7_a_function_commits_its_value,
    p7_wrapped_stores_are_found,
    p7_another_database_of_the_same_kind_is_left_alone,
    p7_another_store_is_told_at_once,
    p7_many_transactions_share_a_small_pool,
);

/// What a handler of axum's returns where it does not commit.
struct Failure(CommitError);

impl From<CommitError> for Failure {
    fn from(error: CommitError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        (StatusCode::INTERNAL_SERVER_ERROR, kind(&self.0)).into_response()
    }
}

/// P7, S29: a handler that returns `Committed` cannot answer without having committed.
async fn p7_committed_is_an_answer_in_axum<D: Database>() {
    async fn transfer<D: Database>(
        Extension(database): Extension<D>,
        execution: Execution,
    ) -> Result<Committed, Failure> {
        if execution.attempt() == 1 {
            return Err(CommitError::Gone.into());
        }
        Ok(pay(&database, &execution).await?)
    }
    let database = D::new().await;
    let layer = IdempotencyLayer::new(database.store().clone(), Scope::single_tenant());
    let app = Router::new()
        .route("/transfers", post(transfer::<D>))
        .layer(layer)
        .layer(Extension(database.clone()));
    for (outcome, status, text) in [
        (Outcome::Failed, 500, "Gone"),
        (Outcome::Completed, 201, "attempt 2"),
        (Outcome::Replayed, 201, "attempt 2"),
    ] {
        let request = request("k").map(axum::body::Body::new);
        read(app.clone().oneshot(request).await.unwrap())
            .await
            .is(outcome, status, text);
    }
    let row = ("k".to_owned(), "attempt 2".to_owned());
    assert_eq!(database.rows().await, [row]);
}

/// P7, S28: rows and value, for work that is no request's.
async fn s28_p7_a_function_commits_its_value<D: Database>() {
    let database = D::new().await;
    let operation = Operation::new("transfer", database.store().clone());
    let runs = Arc::new(Mutex::new(Vec::new()));
    for (attempt, outcome) in [
        (1, None),
        (2, Some(Outcome::Completed)),
        (2, Some(Outcome::Replayed)),
    ] {
        let (database, runs) = (database.clone(), Arc::clone(&runs));
        let work = move |execution: Execution| async move {
            runs.lock().unwrap().push(execution.attempt());
            let transaction = database.begin().await.unwrap();
            let mut transaction = execution.transaction(transaction).unwrap();
            let note = note(&execution);
            let written = database.insert(&mut transaction, execution.key(), &note);
            written.await.unwrap();
            if execution.attempt() == 1 {
                // Dropped, it is rolled back.
                return Err(CommitError::Gone);
            }
            drop(transaction.commit_value(note).await?);
            Ok("made up".to_owned())
        };
        let done = operation.call("k").input(&7).run(work).await;
        match (done, outcome) {
            (Ok(done), Some(outcome)) => {
                assert_eq!(
                    (done.outcome(), done.value().as_str()),
                    (outcome, "attempt 2")
                );
            }
            (Err(RunError::Work(CommitError::Gone)), None) => assert_eq!(attempt, 1),
            (done, _) => panic!("{done:?}"),
        }
    }
    assert_eq!(*runs.lock().unwrap(), [1, 2]);
    let row = ("k".to_owned(), "attempt 2".to_owned());
    assert_eq!(database.rows().await, [row]);
}

/// P7: the store is found behind whatever points to it.
async fn p7_wrapped_stores_are_found<D: Database>() {
    let database = D::new().await;
    let store: Arc<dyn Store> = Arc::new(Box::new(Arc::new(database.store().clone())));
    let layer = IdempotencyLayer::new(store, Scope::single_tenant());
    for outcome in [Outcome::Completed, Outcome::Replayed] {
        let pays = database.clone();
        let service = layer.layer(service_fn(move |request: Handled| {
            let (database, execution) = (pays.clone(), request.extensions().get().cloned());
            async move {
                let execution: Execution = execution.unwrap();
                Ok::<_, std::convert::Infallible>(told(pay(&database, &execution).await))
            }
        }));
        let response = service.oneshot(request("k")).await.unwrap();
        read(response).await.is(outcome, 201, "attempt 1");
    }
    assert_eq!(database.rows().await.len(), 1);
}

/// P7: in another database the record is not there, so nothing is written: neither there nor where the
/// record is. Nor where another operation of the same name is on its way there.
async fn p7_another_database_of_the_same_kind_is_left_alone<D: Database>() {
    let bench = Bench::<D>::new().await;
    let other = Bench::over(bench.database.elsewhere().await);
    let elsewhere = other.database.clone();
    let astray = handler(move |_: D, execution| {
        let elsewhere = elsewhere.clone();
        async move { told(pay(&elsewhere, &execution).await) }
    });
    let seen = bench.send("k", &astray).await;
    seen.is(Outcome::Failed, 500, "Gone");
    bench.holds("k", Some((State::Failed, 1)), &[]).await;
    assert!(other.database.rows().await.is_empty());

    let gate = Gate::new();
    let running = other.start("k", &good_after(&gate));
    gate.reached().await;
    let seen = bench.send("k", &astray).await;
    assert_eq!((seen.status, seen.text.as_str()), (500, "Superseded"));
    assert!(other.database.rows().await.is_empty());
    gate.open();
    running
        .await
        .unwrap()
        .is(Outcome::Completed, 201, "attempt 1");
    other.is_settled("k", 1).await;
    bench.can_be_done("k", 3).await;
}

/// P7: of another kind: nothing is begun.
async fn p7_another_store_is_told_at_once<D: Database>() {
    let database = D::new().await;
    let layer = IdempotencyLayer::new(MemoryStore::new(), Scope::single_tenant());
    let elsewhere = database.clone();
    let service = layer.layer(service_fn(move |request: Handled| {
        let (database, execution) = (elsewhere.clone(), request.extensions().get().cloned());
        async move {
            let execution: Execution = execution.unwrap();
            Ok::<_, std::convert::Infallible>(told(pay(&database, &execution).await))
        }
    }));
    let response = service.oneshot(request("k")).await.unwrap();
    read(response).await.is(Outcome::Failed, 500, "OtherStore");
    assert!(database.rows().await.is_empty());
}

/// P7: twenty operations and their store share the connections that there are.
async fn p7_many_transactions_share_a_small_pool<D: Database>() {
    let bench = Bench::<D>::new().await;
    let sent: Vec<_> = (0..20)
        .map(|key| bench.start(&key.to_string(), &good()))
        .collect();
    for sent in sent {
        sent.await.unwrap().is(Outcome::Completed, 201, "attempt 1");
    }
    for key in 0..20 {
        bench.is_settled(&key.to_string(), 1).await;
    }
}

/// P7, P8: store and handlers share one connection. A transaction has it while it is open, so nobody
/// else claims, and the handler cannot save a checkpoint; but its commit needs no other one.
#[tokio::test]
async fn p7_p8_a_pool_of_one_connection_ends_in_an_error_at_worst() {
    soon(async {
        let database = Postgres::on(server(), server().address(), 1).await;
        let bench =
            Bench::over(database).with(|layer| layer.store_timeout(Duration::from_millis(300)));
        let greedy = handler(|database: Postgres, execution| async move {
            let transaction = database.begin().await.unwrap();
            let mut transaction = execution.transaction(transaction).unwrap();
            let note = note(&execution);
            let written = database.insert(&mut transaction, execution.key(), &note);
            written.await.unwrap();
            let saved = execution.save_checkpoint("in vain").await;
            assert!(matches!(saved, Err(CheckpointError::Store(_))), "{saved:?}");
            told(commit(transaction, &execution).await)
        });
        let seen = bench.send("k", &greedy).await;
        seen.is(Outcome::Completed, 201, "attempt 1");
        bench.is_settled("k", 1).await;

        let gate = Gate::new();
        let inside = gate.clone();
        let slow = handler(move |database: Postgres, execution| {
            let gate = inside.clone();
            async move {
                let transaction = database.begin().await.unwrap();
                let mut transaction = execution.transaction(transaction).unwrap();
                let note = note(&execution);
                let written = database.insert(&mut transaction, execution.key(), &note);
                written.await.unwrap();
                gate.pass().await;
                told(commit(transaction, &execution).await)
            }
        });
        let sent = bench.start("slow", &slow);
        gate.reached().await;
        assert_eq!(bench.send("another", &good()).await.status, 503);
        assert_eq!(bench.send("slow", &good()).await.status, 503);
        gate.open();
        sent.await.unwrap().is(Outcome::Completed, 201, "attempt 1");
        bench.is_settled("slow", 1).await;
        bench.can_be_done("another", 1).await;
    })
    .await;
}

/// P7: a part of a transaction cannot be committed by itself: what holds it may still be rolled
/// back. It is refused, rather than that an answer is sent for rows that are not there.
#[tokio::test]
async fn p7_a_savepoint_is_no_transaction() {
    soon(async {
        let bench = Bench::over(Postgres::new().await);
        let nested = handler(|database: Postgres, execution| async move {
            let mut outer = database.begin().await.unwrap();
            let inner = Connection::begin(&mut *outer).await.unwrap();
            let mut inner = execution.transaction(inner).unwrap();
            let written = database.insert(&mut inner, execution.key(), "half");
            written.await.unwrap();
            let committed = commit(inner, &execution).await;
            drop(outer);
            told(committed)
        });
        let seen = bench.send("k", &nested).await;
        seen.is(Outcome::Failed, 500, "Store");
        bench.holds("k", Some((State::Failed, 1)), &[]).await;
        bench.can_be_done("k", 2).await;
    })
    .await;
}

/// P7: as on PostgreSQL.
#[tokio::test]
async fn p7_a_savepoint_of_sqlite_is_no_transaction() {
    soon(async {
        let bench = Bench::over(Sqlite::new().await);
        let nested = handler(|database: Sqlite, execution| async move {
            let mut outer = database.begin().await.unwrap();
            let inner = Connection::begin(&mut *outer).await.unwrap();
            let mut inner = execution.transaction(inner).unwrap();
            let written = database.insert(&mut inner, execution.key(), "half");
            written.await.unwrap();
            let committed = commit(inner, &execution).await;
            drop(outer);
            told(committed)
        });
        let seen = bench.send("k", &nested).await;
        seen.is(Outcome::Failed, 500, "Store");
        bench.holds("k", Some((State::Failed, 1)), &[]).await;
        bench.can_be_done("k", 2).await;
    })
    .await;
}

/// P7: a transaction of PostgreSQL, and records in SQLite, or the other way round.
#[tokio::test]
async fn p7_a_transaction_of_the_other_kind_is_refused() {
    soon(async {
        let (postgres, sqlite) = (Postgres::new().await, Sqlite::new().await);
        let bench = Bench::over(sqlite.clone());
        let elsewhere = postgres.clone();
        let astray = handler(move |_: Sqlite, execution| {
            let elsewhere = elsewhere.clone();
            async move { told(pay(&elsewhere, &execution).await) }
        });
        let seen = bench.send("k", &astray).await;
        seen.is(Outcome::Failed, 500, "OtherStore");
        bench.can_be_done("k", 2).await;

        let bench = Bench::over(postgres.clone());
        let elsewhere = sqlite.clone();
        let astray = handler(move |_: Postgres, execution| {
            let elsewhere = elsewhere.clone();
            async move { told(pay(&elsewhere, &execution).await) }
        });
        let seen = bench.send("other", &astray).await;
        seen.is(Outcome::Failed, 500, "OtherStore");
        bench.can_be_done("other", 2).await;
        assert_eq!(
            (postgres.rows().await.len(), sqlite.rows().await.len()),
            (1, 1)
        );
    })
    .await;
}
