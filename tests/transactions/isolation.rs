//! PostgreSQL's isolation levels. A checkpoint stands for a renewal: it is one.

use sqlx::{PgConnection, Row};
use tokio::sync::Barrier;
use tower_idempotency::{CommitError, Committed, Execution, Outcome, State, Store};

use std::sync::Arc;

use crate::{
    bench::{Bench, Gate, LEASE, answer, commit, good, handler, kind, note, soon, told},
    database::Database,
    postgres::Postgres,
};

const READ_COMMITTED: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";
const REPEATABLE_READ: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ";
const SERIALIZABLE: &str = "BEGIN ISOLATION LEVEL SERIALIZABLE";

/// When the record is renewed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Renewed {
    Never,
    /// After `BEGIN`, and before the transaction sees anything.
    BeforeTheFirstStatement,
    AfterTheFirstStatement,
}

async fn pay(
    database: &Postgres,
    execution: &Execution,
    begin: &'static str,
    renewed: Renewed,
) -> Result<Committed, CommitError> {
    let renew = async |when| {
        if renewed == when {
            execution.save_checkpoint("renewed").await.unwrap();
        }
    };
    let transaction = database.pool.begin_with(begin).await.unwrap();
    let mut transaction = execution.transaction(transaction)?;
    renew(Renewed::BeforeTheFirstStatement).await;
    let note = note(execution);
    let written = database.insert(&mut transaction, execution.key(), &note);
    written.await.unwrap();
    renew(Renewed::AfterTheFirstStatement).await;
    commit(transaction, execution).await
}

/// P7: at each level a row is written with its record or not at all. Where the level minds that the
/// record was renewed since the transaction's first statement, the commit is refused, and may be
/// tried again, by the handler or by a retry.
#[tokio::test]
async fn p7_at_each_isolation_level() {
    soon(async {
        let bench = Bench::over(Postgres::new().await);
        let renewals = [
            Renewed::Never,
            Renewed::BeforeTheFirstStatement,
            Renewed::AfterTheFirstStatement,
        ];
        for begin in [READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE] {
            for renewed in renewals {
                let refused = begin != READ_COMMITTED && renewed == Renewed::AfterTheFirstStatement;
                let once = handler(move |database, execution| async move {
                    told(pay(&database, &execution, begin, renewed).await)
                });
                let key = format!("once {begin} {renewed:?}");
                let seen = bench.send(&key, &once).await;
                if refused {
                    seen.is(Outcome::Failed, 500, "Refused");
                    bench.holds(&key, Some((State::Failed, 1)), &[]).await;
                    bench.can_be_done(&key, 2).await;
                } else {
                    seen.is(Outcome::Completed, 201, "attempt 1");
                    bench.is_settled(&key, 1).await;
                }

                let again = handler(move |database, execution| async move {
                    match pay(&database, &execution, begin, renewed).await {
                        Err(error) => {
                            assert_eq!(kind(&error), "Refused");
                            told(pay(&database, &execution, begin, Renewed::Never).await)
                        }
                        committed => told(committed),
                    }
                });
                let key = format!("again {begin} {renewed:?}");
                let seen = bench.send(&key, &again).await;
                seen.is(Outcome::Completed, 201, "attempt 1");
                bench.is_settled(&key, 1).await;
            }
        }
    })
    .await;
}

/// P6, P7: the key is taken over while the transaction is open, with its row written: before it sees
/// anything, or after. It is refused at each level.
#[tokio::test]
async fn p6_p7_a_takeover_is_seen_at_each_isolation_level() {
    soon(async {
        let bench = Bench::over(Postgres::new().await);
        for begin in [READ_COMMITTED, REPEATABLE_READ, SERIALIZABLE] {
            for forgotten in [false, true] {
                let key = &format!("{begin} {forgotten}");
                let gate = Gate::new();
                let inside = gate.clone();
                let stale = handler(move |database: Postgres, execution| {
                    let gate = inside.clone();
                    async move {
                        let transaction = database.pool.begin_with(begin).await.unwrap();
                        let mut transaction = execution.transaction(transaction).unwrap();
                        let note = note(&execution);
                        let written = database.insert(&mut transaction, execution.key(), &note);
                        written.await.unwrap();
                        gate.pass().await;
                        told(commit(transaction, &execution).await)
                    }
                });
                let stale = bench.start(key, &stale);
                gate.reached().await;
                if forgotten {
                    let store_key = bench.store_key(key);
                    assert!(bench.database.store().forget(&store_key).await.unwrap());
                }
                bench.database.advance_clock(LEASE);
                let attempt = if forgotten { 1 } else { 2 };
                let newer = bench.send(key, &good()).await;
                newer.is(Outcome::Completed, 201, &format!("attempt {attempt}"));
                gate.open();
                let seen = stale.await.unwrap();
                seen.is(Outcome::Replayed, 201, &format!("attempt {attempt}"));
                bench.is_settled(key, attempt).await;
            }
        }
    })
    .await;
}

async fn rows_seen(connection: &mut PgConnection) -> i64 {
    let count = sqlx::query("SELECT count(*) FROM transfers");
    count.fetch_one(connection).await.unwrap().get(0)
}

/// P7: two operations each read what the other one writes: under SERIALIZABLE the database refuses
/// one of them, which is not written and can be retried.
#[tokio::test]
async fn p7_a_serialization_failure_writes_nothing() {
    soon(async {
        let bench = Bench::over(Postgres::new().await);
        let both = Arc::new(Barrier::new(2));
        let skewed = handler(move |database: Postgres, execution| {
            let both = Arc::clone(&both);
            async move {
                let transaction = database.pool.begin_with(SERIALIZABLE).await.unwrap();
                let mut transaction = execution.transaction(transaction).unwrap();
                assert_eq!(rows_seen(&mut transaction).await, 0);
                both.wait().await;
                let note = note(&execution);
                let written = database.insert(&mut transaction, execution.key(), &note);
                written.await.unwrap();
                both.wait().await;
                told(commit(transaction, &execution).await)
            }
        });
        let sent = ["a", "b"].map(|key| (key, bench.start(key, &skewed)));
        let mut refused = Vec::new();
        for (key, sent) in sent {
            let seen = sent.await.unwrap();
            if seen.status == 201 {
                bench.is_settled(key, 1).await;
            } else {
                seen.is(Outcome::Failed, 500, "Refused");
                bench.holds(key, Some((State::Failed, 1)), &[]).await;
                refused.push(key);
            }
        }
        assert_eq!(refused.len(), 1, "{refused:?}");
        bench.can_be_done(refused[0], 2).await;
    })
    .await;
}

/// P7: a transaction that the server was told to make read-only cannot be completed.
#[tokio::test]
async fn p7_a_read_only_transaction_is_not_completed() {
    soon(async {
        let bench = Bench::over(Postgres::new().await);
        let reads = handler(|database: Postgres, execution| async move {
            let begin = database.pool.begin_with("BEGIN READ ONLY").await;
            let mut transaction = execution.transaction(begin.unwrap()).unwrap();
            rows_seen(&mut transaction).await;
            match commit(transaction, &execution).await {
                Err(CommitError::Store(_)) => answer(500, "read-only"),
                other => panic!("{other:?}"),
            }
        });
        let seen = bench.send("k", &reads).await;
        seen.is(Outcome::Failed, 500, "read-only");
        bench.can_be_done("k", 2).await;
    })
    .await;
}
