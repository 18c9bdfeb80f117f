//! Somebody gives up in the middle: the caller, or a time limit inside the layer or outside of it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http_body_util::Full;
use tower::{Layer, ServiceExt, timeout::Timeout};
use tower_http::timeout::TimeoutLayer;
use tower_idempotency::{OnConflict, Outcome, Reason, State};

use crate::{
    bench::{Bench, Gate, answer, good, good_after, handler, pay, read, request, soon, unwanted},
    database::Database,
    postgres::{Held, Postgres, server},
};

on_each_database!(
    p4_p7_a_caller_who_leaves_finds_what_was_committed,
    p7_a_time_limit_before_the_commit_leaves_nothing,
    p7_s03_who_waits_gets_what_is_committed,
);

const SHORT: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(60);

/// P4, P7: the work goes on.
async fn p4_p7_a_caller_who_leaves_finds_what_was_committed<D: Database>() {
    let bench = Bench::<D>::new().await;
    let gate = Gate::new();
    let sent = bench.start("k", &good_after(&gate));
    gate.reached().await;
    sent.abort();
    assert!(sent.await.unwrap_err().is_cancelled());
    gate.open();
    bench.layer.drain().await;
    bench.is_settled("k", 1).await;
}

/// P7: a limit inside the layer cuts the handler off within its transaction.
async fn p7_a_time_limit_before_the_commit_leaves_nothing<D: Database>() {
    let bench = Bench::<D>::new().await;
    for (key, status) in [("504", 504), ("408", 408)] {
        let gate = Gate::new();
        let inside = gate.clone();
        let slow = handler(move |database: D, execution| {
            let gate = inside.clone();
            async move {
                let transaction = database.begin().await.unwrap();
                let mut transaction = execution.transaction(transaction).unwrap();
                let written = database.insert(&mut transaction, execution.key(), "half");
                written.await.unwrap();
                gate.pass().await;
                unreachable!("it is cut off here")
            }
        });
        let limited = limited(&bench, &slow, status);
        let sent = tokio::spawn(limited.oneshot(request(key)));
        gate.reached().await;
        let seen = read(sent.await.unwrap().unwrap()).await;
        assert_eq!((seen.status, seen.text.as_str()), (status, ""));
        bench.holds(key, Some((State::Failed, 1)), &[]).await;
        bench.can_be_done(key, 2).await;
    }
}

/// A time limit between the layer and the handler, that answers with this status.
fn limited<D: Database>(
    bench: &Bench<D>,
    handler: &crate::bench::Handler<D>,
    status: u16,
) -> impl tower::Service<
    http::Request<Full<bytes::Bytes>>,
    Response = http::Response<tower_idempotency::ResponseBody<Full<bytes::Bytes>>>,
    Error = std::convert::Infallible,
    Future: Send,
>
+ Send
+ 'static
+ use<D> {
    let status = http::StatusCode::from_u16(status).unwrap();
    let limit = TimeoutLayer::with_status_code(status, SHORT);
    let inside = limit.layer(bench.service(handler));
    bench.layer.layer(inside)
}

/// A bench whose commits wait in the server.
async fn holding() -> (Bench<Postgres>, Held) {
    let bench = Bench::over(Postgres::on(server(), server().address(), 16).await);
    let held = bench.database.hold_commits().await;
    (bench, held)
}

/// P4, P7: the caller leaves in mid-commit.
#[tokio::test]
async fn p4_p7_a_caller_who_leaves_in_mid_commit_finds_it_done() {
    soon(async {
        let (bench, mut held) = holding().await;
        let sent = bench.start("k", &good());
        held.reached().await;
        sent.abort();
        assert!(sent.await.unwrap_err().is_cancelled());
        bench.holds("k", Some((State::InProgress, 1)), &[]).await;
        held.release().await;
        bench.layer.drain().await;
        bench.is_settled("k", 1).await;
    })
    .await;
}

/// P4, P7: a limit outside of the layer is a caller who leaves.
#[tokio::test]
async fn p4_p7_a_time_limit_outside_in_mid_commit_finds_it_done() {
    soon(async {
        let (bench, mut held) = holding().await;
        let service = bench.layer.layer(bench.service(&good()));
        let sent = tokio::spawn(Timeout::new(service, SHORT).oneshot(request("k")));
        held.reached().await;
        sent.await.unwrap().map(drop).unwrap_err();
        held.release().await;
        bench.layer.drain().await;
        bench.is_settled("k", 1).await;
    })
    .await;
}

/// P7: a limit inside the layer cuts the commit off. The layer waits for the row to learn what became
/// of it: the caller gets the answer that was committed, or else the limit's.
#[tokio::test]
async fn p7_a_time_limit_inside_in_mid_commit_is_looked_into() {
    soon(async {
        for (status, committed) in [(504, true), (422, true), (504, false), (422, false)] {
            let (bench, mut held) = holding().await;
            let sent = tokio::spawn(limited(&bench, &good(), status).oneshot(request("k")));
            held.reached().await;
            // Until then the commit was not cut off.
            bench.database.waits_for_a_row().await;
            if !committed {
                let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                     WHERE application_name = current_schema() AND query = 'COMMIT' \
                     AND state = 'active'";
                bench.database.run(end).await;
            }
            held.release().await;
            let seen = read(sent.await.unwrap().unwrap()).await;
            if committed {
                seen.is(Outcome::Completed, 201, "attempt 1");
                bench.is_settled("k", 1).await;
            } else {
                // Also a 422: nobody knew whether it was committed.
                seen.is(Outcome::Failed, status, "");
                bench.holds("k", Some((State::Failed, 1)), &[]).await;
                bench.can_be_done("k", 2).await;
            }
        }
    })
    .await;
}

/// P7: the handler leaves its commit to a task, and answers before that has ended. The answer is the
/// one that was committed, and the execution is its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p7_a_commit_that_is_left_to_a_task_counts() {
    soon(async {
        let (bench, mut held) = holding().await;
        let gate = Gate::new();
        let (inside, executions) = (gate.clone(), Arc::new(Mutex::new(Vec::new())));
        let seen = Arc::clone(&executions);
        let leaving = handler(move |database: Postgres, execution| {
            let gate = inside.clone();
            seen.lock().unwrap().push(execution.clone());
            async move {
                tokio::spawn(async move { pay(&database, &execution).await.map(drop) });
                gate.pass().await;
                answer(201, "made up")
            }
        });
        let sent: Vec<_> = (0..6)
            .map(|key| bench.start(&key.to_string(), &leaving))
            .collect();
        for _ in &sent {
            gate.reached().await;
        }
        held.are_reached(6).await;
        for _ in &sent {
            gate.open();
        }
        bench.database.waits_for_a_row().await;
        held.release().await;
        for (key, sent) in sent.into_iter().enumerate() {
            sent.await.unwrap().is(Outcome::Completed, 201, "attempt 1");
            bench.is_settled(&key.to_string(), 1).await;
        }
        let executions = executions.lock().unwrap();
        assert!(executions.iter().all(|it| !it.is_superseded()));
    })
    .await;
}

/// P7, S02: a duplicate only reads: it does not wait for the transaction that has the record's row.
#[tokio::test]
async fn p7_s02_a_duplicate_does_not_wait_for_the_transaction() {
    soon(async {
        let (bench, mut held) = holding().await;
        let sent = bench.start("k", &good());
        held.reached().await;
        for _ in 0..3 {
            let duplicate = bench.send("k", &unwanted()).await;
            assert_eq!(duplicate.outcome, Outcome::Refused(Reason::InProgress));
            assert_eq!(duplicate.status, 409);
        }
        assert!(!sent.is_finished());
        held.release().await;
        sent.await.unwrap().is(Outcome::Completed, 201, "attempt 1");
        bench.is_settled("k", 1).await;
    })
    .await;
}

/// P7, S03: duplicates that listen to the server get what is committed.
#[tokio::test]
async fn p7_s03_who_listens_gets_what_is_committed() {
    soon(async {
        let bench = Bench::over(Postgres::new().await);
        let bench = bench.with(|layer| layer.on_conflict(OnConflict::Wait(PATIENCE)));
        let gate = Gate::new();
        let sent = bench.start("k", &good_after(&gate));
        gate.reached().await;
        let waiting: Vec<_> = (0..3).map(|_| bench.start("k", &unwanted())).collect();
        bench.database.is_listened_to().await;
        assert!(waiting.iter().all(|waiting| !waiting.is_finished()));
        gate.open();
        sent.await.unwrap().is(Outcome::Completed, 201, "attempt 1");
        for waiting in waiting {
            waiting
                .await
                .unwrap()
                .is(Outcome::Replayed, 201, "attempt 1");
        }
        bench.is_settled("k", 1).await;
    })
    .await;
}

/// P7, S03: duplicates that come while the server commits are in time, too.
#[tokio::test]
async fn p7_s03_who_waits_in_mid_commit_gets_what_is_committed() {
    soon(async {
        let (bench, mut held) = holding().await;
        let bench = bench.with(|layer| layer.on_conflict(OnConflict::Wait(PATIENCE)));
        let sent = bench.start("k", &good());
        held.reached().await;
        let waiting: Vec<_> = (0..3).map(|_| bench.start("k", &unwanted())).collect();
        held.release().await;
        sent.await.unwrap().is(Outcome::Completed, 201, "attempt 1");
        for waiting in waiting {
            waiting
                .await
                .unwrap()
                .is(Outcome::Replayed, 201, "attempt 1");
        }
    })
    .await;
}

/// P7, S03: on each database.
async fn p7_s03_who_waits_gets_what_is_committed<D: Database>() {
    let bench = Bench::<D>::new().await;
    let bench = bench.with(|layer| layer.on_conflict(OnConflict::Wait(PATIENCE)));
    let gate = Gate::new();
    let sent = bench.start("k", &good_after(&gate));
    gate.reached().await;
    let waiting: Vec<_> = (0..3).map(|_| bench.start("k", &unwanted())).collect();
    gate.open();
    sent.await.unwrap().is(Outcome::Completed, 201, "attempt 1");
    for waiting in waiting {
        waiting
            .await
            .unwrap()
            .is(Outcome::Replayed, 201, "attempt 1");
    }
}
