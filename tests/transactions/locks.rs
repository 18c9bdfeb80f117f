//! SQLite's one write lock: what a transaction holds up, and what holds it up.

use std::{
    cell::Cell,
    sync::Once,
    time::{Duration, Instant},
};

use sqlx::Executor;
use tokio::time::sleep;
use tower_idempotency::{CheckpointError, CommitError, Outcome, Reason, State};
use tracing::{Event, Subscriber, field::Field};
use tracing_subscriber::layer::{Context, SubscriberExt};

use crate::{
    bench::{
        Bench, Gate, Handler, LEASE, answer, commit, good, handler, kind, note, pay, soon, told,
    },
    database::Database,
    sqlite::Sqlite,
};

/// Takes the lock, writes, passes the gate, and commits then, or not.
fn holding(gate: &Gate, commits: bool) -> Handler<Sqlite> {
    let gate = gate.clone();
    handler(move |database: Sqlite, execution| {
        let gate = gate.clone();
        async move {
            let transaction = database.begin_immediate().await;
            let mut transaction = execution.transaction(transaction).unwrap();
            let note = note(&execution);
            let written = database.insert(&mut transaction, execution.key(), &note);
            written.await.unwrap();
            gate.pass().await;
            match commits {
                true => told(commit(transaction, &execution).await),
                false => answer(500, "broken"),
            }
        }
    })
}

async fn look(connection: &mut sqlx::SqliteConnection) {
    let look = "SELECT * FROM transfers";
    connection.fetch_all(look).await.unwrap();
}

/// P7: `BEGIN` takes no lock. A transaction that has read, and meets a write that came after that, even
/// a renewal of its own record, can neither write nor be committed; `BEGIN IMMEDIATE` has no such
/// trouble.
#[tokio::test]
async fn p7_a_transaction_that_reads_first_needs_its_lock_first() {
    soon(async {
        let bench = Bench::over(Sqlite::new().await);
        let reads = handler(|database: Sqlite, execution| async move {
            let transaction = database.begin().await.unwrap();
            let mut transaction = execution.transaction(transaction).unwrap();
            look(&mut transaction).await;
            execution.save_checkpoint("renewed").await.unwrap();
            match commit(transaction, &execution).await {
                Err(CommitError::Refused(_)) => {}
                other => panic!("{other:?}"),
            }

            let transaction = database.begin().await.unwrap();
            let mut transaction = execution.transaction(transaction).unwrap();
            look(&mut transaction).await;
            execution.save_checkpoint("renewed").await.unwrap();
            let written = database.insert(&mut transaction, execution.key(), "half");
            written.await.unwrap_err();
            // Whoever goes on all the same is told, too.
            let refused = commit(transaction, &execution).await.unwrap_err();
            answer(500, kind(&refused))
        });
        let seen = bench.send("k", &reads).await;
        seen.is(Outcome::Failed, 500, "Refused");
        bench.holds("k", Some((State::Failed, 1)), &[]).await;

        let immediate = handler(|database: Sqlite, execution| async move {
            execution.save_checkpoint("renewed").await.unwrap();
            let transaction = database.begin_immediate().await;
            let mut transaction = execution.transaction(transaction).unwrap();
            look(&mut transaction).await;
            let note = note(&execution);
            let written = database.insert(&mut transaction, execution.key(), &note);
            written.await.unwrap();
            told(commit(transaction, &execution).await)
        });
        let seen = bench.send("k", &immediate).await;
        seen.is(Outcome::Completed, 201, "attempt 2");
        bench.is_settled("k", 2).await;
    })
    .await;
}

/// P7: a statement that fails undoes itself only; what the handler makes of it is its own matter.
#[tokio::test]
async fn p7_a_statement_that_failed_leaves_the_rest() {
    soon(async {
        let bench = Bench::over(Sqlite::new().await);
        let swallows = handler(|database: Sqlite, execution| async move {
            let transaction = database.begin().await.unwrap();
            let mut transaction = execution.transaction(transaction).unwrap();
            let note = note(&execution);
            let written = database.insert(&mut transaction, execution.key(), &note);
            written.await.unwrap();
            let nothing = sqlx::query("INSERT INTO transfers (key) VALUES ('half')");
            nothing.execute(&mut *transaction).await.unwrap_err();
            told(commit(transaction, &execution).await)
        });
        let seen = bench.send("k", &swallows).await;
        seen.is(Outcome::Completed, 201, "attempt 1");
        assert!(bench.rows("half").await.is_empty());
        bench.is_settled("k", 1).await;
    })
    .await;
}

/// P1, P7: the lease ends within the transaction, and another process wants to take over: it waits
/// for the lock, and then gets what was committed; or takes over, if nothing was.
#[tokio::test]
async fn p1_p7_nobody_takes_over_while_the_lock_is_held() {
    soon(async {
        let bench = Bench::over(Sqlite::new().await);
        for (key, commits) in [("commits", true), ("rolls back", false)] {
            // As another process has it, with connections of its own.
            let other = Bench::over(Sqlite::at(&bench.database.place()).await);
            let gate = Gate::new();
            let sent = bench.start(key, &holding(&gate, commits));
            gate.reached().await;
            let early = other.send(key, &good()).await;
            assert_eq!(early.outcome, Outcome::Refused(Reason::InProgress));
            other.database.advance_clock(LEASE);
            let retry = other.start(key, &good());
            // It asks again and again; nothing says when.
            sleep(Duration::from_millis(200)).await;
            assert!(!retry.is_finished());
            gate.open();
            let seen = sent.await.unwrap();
            let retried = retry.await.unwrap();
            if commits {
                seen.is(Outcome::Completed, 201, "attempt 1");
                retried.is(Outcome::Replayed, 201, "attempt 1");
                bench.is_settled(key, 1).await;
            } else {
                // Which of the two came first to the lock is open: the one that notes the failure, or
                // the one that takes over.
                assert_eq!((seen.status, seen.text.as_str()), (500, "broken"));
                assert_eq!(retried.status, 201, "{retried:?}");
                bench.is_settled(key, 2).await;
            }
        }
    })
    .await;
}

/// P7: whoever waits for the lock for longer than it may gets a 503, and did nothing.
#[tokio::test]
async fn p7_p8_a_lock_that_is_held_for_long_ends_in_an_error() {
    soon(async {
        let bench = Bench::over(Sqlite::new().await);
        let hasty = Bench::over(Sqlite::at(&bench.database.place()).await)
            .with(|layer| layer.store_timeout(Duration::from_millis(200)));
        let gate = Gate::new();
        let sent = bench.start("k", &holding(&gate, true));
        gate.reached().await;
        assert_eq!(hasty.send("another", &good()).await.status, 503);
        gate.open();
        sent.await.unwrap().is(Outcome::Completed, 201, "attempt 1");
        bench.is_settled("k", 1).await;
        bench.layer.drain().await;
        hasty.layer.drain().await;
        bench.can_be_done("another", 1).await;
    })
    .await;
}

/// P7: the handler is cut off while its transaction waits for somebody else's lock, by a limit of its
/// own or because the database gives up: nothing is written.
#[tokio::test]
async fn p7_a_transaction_that_waits_for_the_lock_can_be_cut_off() {
    soon(async {
        let bench = Bench::over(Sqlite::new().await);
        let begun = Gate::new();
        let inside = begun.clone();
        let hasty = handler(move |database: Sqlite, execution| {
            let begun = inside.clone();
            async move {
                begun.pass().await;
                let limit = Duration::from_millis(100);
                let paid = tokio::time::timeout(limit, pay(&database, &execution)).await;
                answer(
                    504,
                    if paid.is_err() {
                        "cut off"
                    } else {
                        "not cut off"
                    },
                )
            }
        });
        let sent = bench.start("k", &hasty);
        begun.reached().await;
        let lock = bench.database.begin_immediate().await;
        begun.open();
        // The failure is recorded once the lock is free.
        sleep(Duration::from_millis(300)).await;
        lock.rollback().await.unwrap();
        sent.await.unwrap().is(Outcome::Failed, 504, "cut off");
        bench.holds("k", Some((State::Failed, 1)), &[]).await;
        bench.can_be_done("k", 2).await;
    })
    .await;
}

/// P7: a checkpoint needs the lock that the handler's own transaction has.
#[tokio::test]
async fn p7_a_checkpoint_within_the_transaction_is_in_vain() {
    soon(async {
        let bench = Bench::over(Sqlite::new().await)
            .with(|layer| layer.store_timeout(Duration::from_millis(300)));
        let saves = handler(|database: Sqlite, execution| async move {
            let transaction = database.begin_immediate().await;
            let mut transaction = execution.transaction(transaction).unwrap();
            let note = note(&execution);
            let written = database.insert(&mut transaction, execution.key(), &note);
            written.await.unwrap();
            let saved = execution.save_checkpoint("in vain").await;
            assert!(matches!(saved, Err(CheckpointError::Store(_))), "{saved:?}");
            told(commit(transaction, &execution).await)
        });
        let seen = bench.send("k", &saves).await;
        seen.is(Outcome::Completed, 201, "attempt 1");
        bench.is_settled("k", 1).await;
    })
    .await;
}

/// Counts events that say that a renewal failed, on this thread.
struct Renewals;

thread_local! {
    static FAILED: Cell<u32> = const { Cell::new(0) };
}

impl Renewals {
    fn count() {
        static SUBSCRIBER: Once = Once::new();
        SUBSCRIBER.call_once(|| {
            let subscriber = tracing_subscriber::registry().with(Self);
            tracing::subscriber::set_global_default(subscriber).unwrap();
        });
    }
}

impl<S: Subscriber> tracing_subscriber::Layer<S> for Renewals {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut renew = |field: &Field, value: &dyn std::fmt::Debug| {
            if field.name() == "operation" && format!("{value:?}").contains("renew") {
                FAILED.set(FAILED.get() + 1);
            }
        };
        event.record(&mut renew);
    }
}

/// P7: renewals wait for the transaction in vain. It does no harm, and is told of now and then: each
/// time that a renewal was given up, and not while the store commits.
#[tokio::test]
async fn p7_renewals_that_wait_for_the_transaction_do_no_harm() {
    Renewals::count();
    soon(async {
        let lease = Duration::from_millis(300);
        let bench = Bench::over(Sqlite::new().await).with(|layer| layer.lease(lease));
        let gate = Gate::new();
        let sent = bench.start("k", &holding(&gate, true));
        gate.reached().await;
        let start = Instant::now();
        // Several leases.
        sleep(lease * 5).await;
        gate.open();
        sent.await.unwrap().is(Outcome::Completed, 201, "attempt 1");
        bench.is_settled("k", 1).await;
        // Given up after a third of the lease, and tried again after a tenth.
        let most = start.elapsed().as_millis() / (lease * 13 / 30).as_millis() + 1;
        let told = FAILED.get();
        println!("{told} events");
        assert!(
            told >= 1 && u128::from(told) <= most,
            "{told} events, {most} at most"
        );
    })
    .await;
}
