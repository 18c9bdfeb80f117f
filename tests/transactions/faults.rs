//! The database, or the way to it, breaks off around the commit.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tower_idempotency::{CommitError, Committed, Outcome, State};

use crate::{
    bench::{
        Bench, Gate, Handler, LEASE, answer, commit, good, handler, kind, note, pay, soon, told,
    },
    database::Database,
    postgres::{Postgres, server},
    servers::{
        postgres::PostgresServer,
        proxy::{Cut, Proxy},
    },
};

/// How a handler's commit went.
#[derive(Clone, Default)]
struct Went(Arc<Mutex<Vec<&'static str>>>);

impl Went {
    fn note(&self, committed: &Result<Committed, CommitError>) {
        let went = committed.as_ref().map_or_else(kind, |_| "committed");
        self.0.lock().unwrap().push(went);
    }

    fn is(&self, went: &[&str]) {
        assert_eq!(*self.0.lock().unwrap(), went);
    }
}

/// Pays, and notes how it went. Careless, it answers as if all were well.
fn noting(went: &Went, careless: bool) -> Handler<Postgres> {
    let went = went.clone();
    handler(move |database, execution| {
        let went = went.clone();
        async move {
            let committed = pay(&database, &execution).await;
            went.note(&committed);
            match careless {
                true => answer(201, "made up"),
                false => told(committed),
            }
        }
    })
}

/// Writes a row, passes the gate, and commits then.
fn gated(went: &Went, gate: &Gate) -> Handler<Postgres> {
    let (went, gate) = (went.clone(), gate.clone());
    handler(move |database: Postgres, execution| {
        let (went, gate) = (went.clone(), gate.clone());
        async move {
            let transaction = database.begin().await.unwrap();
            let mut transaction = execution.transaction(transaction).unwrap();
            let note = note(&execution);
            let written = database.insert(&mut transaction, execution.key(), &note);
            written.await.unwrap();
            gate.pass().await;
            let committed = commit(transaction, &execution).await;
            went.note(&committed);
            told(committed)
        }
    })
}

/// One whose store is given up early.
fn hasty(database: Postgres) -> Bench<Postgres> {
    Bench::over(database).with(|layer| {
        let layer = layer.store_timeout(Duration::from_millis(500));
        layer.record_timeout(Duration::from_millis(1_500))
    })
}

/// P7: the server committed, and its answer is lost: the layer looks, and the caller gets what was
/// committed, whatever the handler says.
#[tokio::test]
async fn p7_a_commit_whose_answer_is_lost_is_found() {
    soon(async {
        let proxy = Proxy::before(server().address()).await;
        let bench = Bench::over(Postgres::on(server(), proxy.address(), 4).await);
        for (key, careless) in [("careful", false), ("careless", true)] {
            let went = Went::default();
            proxy.cut_at(b"COMMIT", Cut::After);
            let seen = bench.send(key, &noting(&went, careless)).await;
            went.is(&["Unknown"]);
            seen.is(Outcome::Completed, 201, "attempt 1");
            assert_eq!(seen.headers["location"], "/transfers/1");
            bench.is_settled(key, 1).await;
        }
    })
    .await;
}

/// P7: the server never heard of the commit: nothing is written, and a retry runs.
#[tokio::test]
async fn p7_a_commit_that_is_lost_on_its_way_wrote_nothing() {
    soon(async {
        let proxy = Proxy::before(server().address()).await;
        let bench = Bench::over(Postgres::on(server(), proxy.address(), 4).await);
        for (key, careless) in [("careful", false), ("careless", true)] {
            let went = Went::default();
            proxy.cut_at(b"COMMIT", Cut::Before);
            let seen = bench.send(key, &noting(&went, careless)).await;
            went.is(&["Unknown"]);
            assert_eq!((seen.outcome, seen.status), (Outcome::Failed, 500));
            match careless {
                true => assert_eq!(seen.problem(), "not-committed"),
                false => assert_eq!(seen.text, "Unknown"),
            }
            bench.holds(key, Some((State::Failed, 1)), &[]).await;
            bench.can_be_done(key, 2).await;
        }
    })
    .await;
}

/// P7: the connection breaks off before the handler says that all is to be committed.
#[tokio::test]
async fn p7_a_connection_that_breaks_before_the_commit_wrote_nothing() {
    soon(async {
        let proxy = Proxy::before(server().address()).await;
        let bench = Bench::over(Postgres::on(server(), proxy.address(), 4).await);
        let (went, gate) = (Went::default(), Gate::new());
        let sent = bench.start("k", &gated(&went, &gate));
        gate.reached().await;
        proxy.cut();
        gate.open();
        sent.await.unwrap().is(Outcome::Failed, 500, "Store");
        went.is(&["Store"]);
        bench.holds("k", Some((State::Failed, 1)), &[]).await;
        bench.can_be_done("k", 2).await;
    })
    .await;
}

/// P7: the server is gone between the handler's statements and its commit. The failure is recorded
/// once the server is there again.
#[tokio::test]
async fn p7_a_server_that_goes_away_before_the_commit_wrote_nothing() {
    soon(async {
        let mut server = PostgresServer::start();
        let bench = hasty(Postgres::on(&server, server.address(), 4).await);
        for (key, crashes) in [("crashes", true), ("stops", false)] {
            let (went, gate) = (Went::default(), Gate::new());
            let sent = bench.start(key, &gated(&went, &gate));
            gate.reached().await;
            match crashes {
                true => server.kill(),
                false => server.stop(),
            }
            gate.open();
            sent.await.unwrap().is(Outcome::Unrecorded, 500, "Store");
            went.is(&["Store"]);
            server.restart();
            bench.layer.drain().await;
            bench.holds(key, Some((State::Failed, 1)), &[]).await;
            bench.can_be_done(key, 2).await;
        }
    })
    .await;
}

/// P7: the server dies while it commits: what it finds in its log counts.
#[tokio::test]
async fn p7_a_server_that_dies_while_it_commits_wrote_nothing() {
    soon(async {
        let mut server = PostgresServer::start();
        let bench = hasty(Postgres::on(&server, server.address(), 4).await)
            .with(|layer| layer.record_timeout(Duration::from_secs(30)));
        let mut held = bench.database.hold_commits().await;
        let went = Went::default();
        let sent = bench.start("k", &noting(&went, false));
        held.reached().await;
        server.kill();
        server.restart();
        let seen = sent.await.unwrap();
        went.is(&["Unknown"]);
        seen.is(Outcome::Failed, 500, "Unknown");
        bench.can_be_done("k", 2).await;
    })
    .await;
}

/// P7: the server is frozen in the middle of the commit for longer than anybody waits. Once it is
/// thawed the commit is carried out, and that is what a retry gets; nobody has run meanwhile.
#[tokio::test]
async fn p7_a_server_that_is_frozen_while_it_commits_writes_once() {
    soon(async {
        let server = PostgresServer::start();
        let bench = hasty(Postgres::on(&server, server.address(), 8).await);
        let mut held = bench.database.hold_commits().await;
        let went = Went::default();
        let sent = bench.start("k", &noting(&went, false));
        held.reached().await;
        server.freeze();
        let seen = sent.await.unwrap();
        went.is(&["Unknown"]);
        seen.is(Outcome::Unrecorded, 500, "Unknown");
        let meanwhile = bench.send("k", &good()).await;
        assert_eq!(meanwhile.status, 503);
        server.thaw();
        held.release().await;
        bench.layer.drain().await;
        // A claim of which nobody heard is none that holds the key.
        bench.is_settled("k", 1).await;
    })
    .await;
}

/// P7: the lease ends meanwhile, too: whoever wants to take over waits for the row, and gets what was
/// committed.
#[tokio::test]
async fn p7_p6_nobody_takes_over_while_the_server_commits() {
    soon(async {
        let bench = Bench::over(Postgres::new().await)
            .with(|layer| layer.record_timeout(Duration::from_millis(300)));
        let mut held = bench.database.hold_commits().await;
        let went = Went::default();
        let sent = bench.start("k", &noting(&went, false));
        held.reached().await;
        bench.database.advance_clock(LEASE);
        let retry = bench.start("k", &good());
        sent.await.unwrap().is(Outcome::Unrecorded, 500, "Unknown");
        bench.database.waits_for_a_row().await;
        assert!(!retry.is_finished());
        held.release().await;
        retry.await.unwrap().is(Outcome::Replayed, 201, "attempt 1");
        bench.layer.drain().await;
        bench.is_settled("k", 1).await;
    })
    .await;
}

/// P7: an operator ends the connection while it commits.
#[tokio::test]
async fn p7_a_commit_that_is_ended_by_an_operator_wrote_nothing() {
    soon(async {
        for end in ["pg_terminate_backend", "pg_cancel_backend"] {
            let bench = Bench::over(Postgres::new().await);
            let mut held = bench.database.hold_commits().await;
            let went = Went::default();
            let sent = bench.start("k", &noting(&went, false));
            held.reached().await;
            let end = format!(
                "SELECT {end}(pid) FROM pg_stat_activity \
                 WHERE application_name = current_schema() AND query = 'COMMIT' \
                 AND state = 'active'"
            );
            bench.database.run(&end).await;
            sent.await.unwrap().is(Outcome::Failed, 500, "Unknown");
            went.is(&["Unknown"]);
            held.release().await;
            bench.holds("k", Some((State::Failed, 1)), &[]).await;
            bench.can_be_done("k", 2).await;
        }
    })
    .await;
}

/// P7: a statement of the handler's fails, and it goes on as if nothing were: PostgreSQL has ended
/// the transaction, and nothing counts as completed.
#[tokio::test]
async fn p7_a_statement_that_failed_is_not_overlooked() {
    soon(async {
        let bench = Bench::over(Postgres::new().await);
        let went = Went::default();
        let swallows = |careless: bool| {
            let went = went.clone();
            handler(move |database: Postgres, execution| {
                let went = went.clone();
                async move {
                    let transaction = database.begin().await.unwrap();
                    let mut transaction = execution.transaction(transaction).unwrap();
                    let note = note(&execution);
                    let written = database.insert(&mut transaction, execution.key(), &note);
                    written.await.unwrap();
                    let failed = sqlx::query("SELECT 1 / 0").execute(&mut *transaction);
                    failed.await.unwrap_err();
                    let committed = commit(transaction, &execution).await;
                    went.note(&committed);
                    match careless {
                        true => answer(201, "made up"),
                        false => told(committed),
                    }
                }
            })
        };
        let seen = bench.send("k", &swallows(false)).await;
        seen.is(Outcome::Failed, 500, "Store");
        bench.holds("k", Some((State::Failed, 1)), &[]).await;
        let seen = bench.send("k", &swallows(true)).await;
        assert_eq!(seen.problem(), "not-committed");
        went.is(&["Store", "Store"]);
        bench.holds("k", Some((State::Failed, 2)), &[]).await;
        bench.can_be_done("k", 3).await;
    })
    .await;
}
