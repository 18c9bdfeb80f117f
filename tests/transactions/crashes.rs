//! The process of the handler dies with -9.
//!
//! The other process is this test binary, started again for one test, the [`child`], which does
//! nothing unless it finds what to do in its environment.

use std::{
    future::pending,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use tokio::task::spawn_blocking;
use tower_idempotency::{Outcome, Reason, State};

use crate::{
    bench::{Bench, LEASE, answer, good, handler, note, pay, soon},
    database::Database,
    postgres::Postgres,
    servers::process::Process,
    sqlite::Sqlite,
    stress,
};

on_each_database!(
    p7_p5_a_crash_before_the_commit_leaves_nothing,
    p7_p2_a_crash_after_the_commit_leaves_all,
);

const DATABASE: &str = "TOWER_IDEMPOTENCY_TEST_DATABASE";
const MOMENT: &str = "TOWER_IDEMPOTENCY_TEST_MOMENT";

/// Where the handler of the other process stops, says so, and waits for its death.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Moment {
    /// A row is written, and nothing is committed.
    Written,
    /// All is committed, and the layer has not answered.
    Committed,
    /// The handler is told to commit.
    Committing,
    /// It goes on, with many keys, until it is killed.
    Stressed,
}

impl Moment {
    const ALL: [Self; 4] = [
        Self::Written,
        Self::Committed,
        Self::Committing,
        Self::Stressed,
    ];

    fn name(self) -> String {
        format!("{self:?}")
    }
}

/// Not a test, but what the other process runs.
#[tokio::test]
async fn child() {
    let Ok(place) = std::env::var(DATABASE) else {
        return;
    };
    let moment = std::env::var(MOMENT).unwrap();
    let moment = Moment::ALL.into_iter().find(|it| it.name() == moment);
    let moment = moment.unwrap();
    match place.split_once(' ').unwrap() {
        (Postgres::KIND, place) => runs(Postgres::at(place).await, moment).await,
        (Sqlite::KIND, place) => runs(Sqlite::at(place).await, moment).await,
        other => panic!("{other:?}"),
    }
}

async fn runs<D: Database>(database: D, moment: Moment) {
    let bench = Bench::over(database);
    if moment == Moment::Stressed {
        println!("\n{}", moment.name());
        return stress::goes_on(bench).await;
    }
    let stops = handler(move |database: D, execution| async move {
        let says = || println!("\n{}", moment.name());
        match moment {
            Moment::Written => {
                let transaction = database.begin().await.unwrap();
                let mut transaction = execution.transaction(transaction).unwrap();
                let note = note(&execution);
                let written = database.insert(&mut transaction, execution.key(), &note);
                written.await.unwrap();
                says();
                pending().await
            }
            Moment::Committed => {
                drop(pay(&database, &execution).await.unwrap());
                says();
                pending().await
            }
            Moment::Committing => {
                says();
                drop(pay(&database, &execution).await);
                pending().await
            }
            Moment::Stressed => unreachable!("it has its own handler"),
        }
    });
    bench.send("k", &stops).await;
}

/// The other process, where its handler has come to this moment. It dies when this is dropped.
pub(crate) async fn process<D: Database>(database: &D, moment: Moment) -> Process {
    let place = format!("{} {}", D::KIND, database.place());
    let started = spawn_blocking(move || {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "crashes::child", "--nocapture"])
            .env(DATABASE, place)
            .env(MOMENT, moment.name())
            .stdout(Stdio::piped());
        let mut process = Process::start(&mut command);
        let mut lines = BufReader::new(process.stdout()).lines();
        let said = lines.any(|line| line.unwrap() == moment.name());
        assert!(said, "the process ended too early");
        process
    });
    started.await.unwrap()
}

/// A bench in this process, which has seen the key.
async fn watching<D: Database>(database: D) -> Bench<D> {
    let bench = Bench::over(database);
    // A rejection leaves nothing behind.
    let rejects = handler(|_, _| async move { answer(400, "") });
    bench
        .send("k", &rejects)
        .await
        .is(Outcome::Rejected, 400, "");
    bench
}

/// P7, P5: until the lease has ended a retry is told to wait; then it takes over, and its row is the
/// only one.
async fn p7_p5_a_crash_before_the_commit_leaves_nothing<D: Database>() {
    let bench = watching(D::new().await).await;
    let mut process = process(&bench.database, Moment::Written).await;
    bench.holds("k", Some((State::InProgress, 1)), &[]).await;
    process.kill();
    bench.holds("k", Some((State::InProgress, 1)), &[]).await;
    let early = bench.send("k", &good()).await;
    assert_eq!(
        (early.outcome, early.status),
        (Outcome::Refused(Reason::InProgress), 409)
    );

    bench.database.advance_clock(LEASE);
    let next = bench.send("k", &good()).await;
    next.is(Outcome::Completed, 201, "attempt 2");
    bench.is_settled("k", 2).await;
}

/// P7, P2: the answer was never sent, and a retry gets it at once.
async fn p7_p2_a_crash_after_the_commit_leaves_all<D: Database>() {
    let bench = watching(D::new().await).await;
    let mut process = process(&bench.database, Moment::Committed).await;
    process.kill();
    bench.is_settled("k", 1).await;
    bench.database.advance_clock(LEASE);
    bench.is_settled("k", 1).await;
}

/// P7: the process dies while the server commits. The server goes on; until it is done, a retry is
/// told to wait, and then gets the answer.
#[tokio::test]
async fn p7_p2_a_crash_in_the_middle_of_the_commit() {
    let bench = watching(Postgres::new().await).await;
    let mut held = bench.database.hold_commits().await;
    let mut process = process(&bench.database, Moment::Committing).await;
    held.reached().await;
    process.kill();
    bench.holds("k", Some((State::InProgress, 1)), &[]).await;
    let early = bench.send("k", &good()).await;
    assert_eq!(
        (early.outcome, early.status),
        (Outcome::Refused(Reason::InProgress), 409)
    );
    // Once the lease has ended a retry would take over, but for the transaction: it waits for that.
    bench.database.advance_clock(LEASE);
    let retry = bench.start("k", &good());
    bench.database.waits_for_a_row().await;
    assert!(!retry.is_finished());
    held.release().await;
    retry.await.unwrap().is(Outcome::Replayed, 201, "attempt 1");
    bench.is_settled("k", 1).await;
}

/// P7, P8: a process that is frozen within its transaction keeps SQLite's lock: nobody can take over,
/// and nobody else can claim, until it dies.
#[tokio::test]
async fn p7_p8_a_frozen_process_keeps_the_lock() {
    soon(async {
        let bench = watching(Sqlite::new().await).await;
        let mut process = process(&bench.database, Moment::Written).await;
        process.freeze();
        bench.database.advance_clock(LEASE);
        let hasty = Bench::over(Sqlite::at(&bench.database.place()).await)
            .with(|layer| layer.store_timeout(Duration::from_millis(200)));
        assert_eq!(hasty.send("another", &good()).await.status, 503);
        let takeover = bench.start("k", &good());
        process.kill();
        let seen = takeover.await.unwrap();
        seen.is(Outcome::Completed, 201, "attempt 2");
        bench.is_settled("k", 2).await;
        hasty.layer.drain().await;
    })
    .await;
}
